"""Nested KVM hosts: virtual machines that are KVM hosts themselves."""
