"""Copies of VMs: cold, live, and from a saved memory, each with an identity of its own."""
