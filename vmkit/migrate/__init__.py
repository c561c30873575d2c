"""Floor 3: one VM from host to host, while it runs."""
