"""Networks of a host that VMs join: made, shown and removed."""
