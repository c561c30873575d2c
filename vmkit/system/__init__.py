"""Floor 0: the only place that touches the machine (files, processes, netlink, ssh, process memory, the clock)."""
