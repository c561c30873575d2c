"""Snapshots of a VM: taken, shown as a tree, gone back to, deleted."""
