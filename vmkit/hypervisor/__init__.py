"""Floor 0: the only place that imports libvirt. Connections, domains, volumes, errors."""
