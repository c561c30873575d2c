"""Changing VMs that exist: what differs from what is asked for, and bringing it about, live where that is possible."""
