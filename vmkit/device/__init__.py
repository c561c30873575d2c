"""PCI devices of a host: what there is, who uses it, and lending it to VMs."""
