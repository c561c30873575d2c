"""Backups of a VM's disks to a directory of its host, full and incremental, and VMs made from them again."""
