"""Floor 3: throw-away hosts. `pair` is two libvirt hosts on this machine, in namespaces."""
