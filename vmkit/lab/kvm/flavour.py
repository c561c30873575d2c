"""Nested KVM hosts, as a kind of nested hosts."""

from __future__ import annotations

from typing import Final

from vmkit.lab.kvm import config
from vmkit.lab.kvm.command import command
from vmkit.lab.kvm.engine import choose_engine
from vmkit.lab.nested.flavour import Flavour

FLAVOUR: Final = Flavour(
    kind="kvm",
    title="KVM",
    cmdline="root=/dev/vda rw console=ttyS0",
    boot={"kernel": "vmlinuz-*", "initrd": "initrd.img-*"},
    boot_within=600.0,  # it takes 30 on two quiet cores under TCG (measured)
    carries=True,
    choose_engine=choose_engine,
    command=command,
    files=config.files,
    settings=config.settings,
)
