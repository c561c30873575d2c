"""Nested hosts: virtual machines that are hosts themselves. What every hypervisor's have in common."""
