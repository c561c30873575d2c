"""Functions of the running kernel's modules, replaced by livepatch modules."""
