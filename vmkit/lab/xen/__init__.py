"""Nested Xen hosts: virtual machines that run Xen, with a dom0 that libvirt and xl control."""
