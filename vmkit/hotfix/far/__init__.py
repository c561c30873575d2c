"""Hotfixes of hosts that are reached by ssh: what does the work is carried there, run, and removed."""
