"""What tells one kind of nested hosts from another, for the code that all kinds share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vmkit.lab.nested.blueprint import Blueprint, HostPlan
from vmkit.lab.nested.hardware import ANYWHERE, Engine, Files
from vmkit.progress import Reporter


@dataclass(frozen=True, slots=True)
class Flavour:
    """A kind of nested hosts.

    Attributes:
        kind: 'kvm', 'xen': also the name of the lab's kind, and templates/lab-KIND holds the recipe of the image.
        title: of the hypervisor, for people.
        cmdline: kernel command line that finds the root file system.
        boot: files that the image keeps beside its disk -> where they lie in the tree's /boot.
        boot_within: seconds that a boot may take on a busy machine.
        carries: whether hosts get vmkit itself, and this machine's micro images.
        choose_engine: what runs hosts with some options on this machine, and why.
        command: QEMU's command line for a host: its name, engine, options, files, and the kernel's command line.
        files: configuration of a host's hypervisor, by path.
        settings: what templates/lab-KIND/own reads, beyond what every host has.
    """

    kind: str
    title: str
    cmdline: str
    boot: Mapping[str, str]
    boot_within: float
    carries: bool
    choose_engine: Callable[[Any, Reporter], tuple[Engine, str]]
    command: Callable[[str, Engine, Any, Files, str], list[str]]
    files: Callable[[Blueprint, HostPlan], dict[str, str]]
    settings: Callable[[Blueprint, HostPlan], dict[str, object]]

    def key_text(self, engine: Engine, options: Any, image: str, cpu: str) -> str:
        """All that a saved machine depends on, as text.

        Args:
            engine: what ran it; its path does not matter, its version does.
            options: its hardware; what is set after it is loaded does not matter.
            image: key of the host image.
            cpu: this machine's CPU and QEMU build, where they can be seen by the machine.
        """
        words = self.command("", engine, options, ANYWHERE, "")[1:]
        return "\n".join([*words, *map(str, engine.version), image, cpu])
