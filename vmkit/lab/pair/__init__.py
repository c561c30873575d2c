"""Two or more libvirt hosts on this machine, in namespaces of their own."""
