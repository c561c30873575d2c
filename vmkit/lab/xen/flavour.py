"""Nested Xen hosts, as a kind of nested hosts."""

from __future__ import annotations

from typing import Final

from vmkit.lab.nested.blueprint import Blueprint, HostPlan
from vmkit.lab.nested.flavour import Flavour
from vmkit.lab.xen.command import command
from vmkit.lab.xen.engine import choose_engine


def _files(_plan: Blueprint, _host: HostPlan) -> dict[str, str]:
    return {}


def _settings(_plan: Blueprint, _host: HostPlan) -> dict[str, object]:
    return {}


FLAVOUR: Final = Flavour(
    kind="xen",
    title="Xen",
    cmdline="root=/dev/sda rw console=hvc0",
    boot={"hypervisor": "xen-*.gz", "kernel": "vmlinuz-*", "initrd": "initrd.img-*"},
    boot_within=1800.0,
    carries=False,  # Debian 12 lacks a library of it (msgspec); such hosts are reached by xen+ssh
    choose_engine=choose_engine,
    command=command,
    files=_files,
    settings=_settings,
)
