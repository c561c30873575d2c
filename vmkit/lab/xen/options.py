"""What nested Xen hosts are asked to have. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vmkit.lab.nested.options import HostOptions
from vmkit.values import Bytes


@dataclass(frozen=True, slots=True)
class XenOptions(HostOptions):
    """The hardware of each host.

    Attributes:
        memory: of each host; dom0 gets DOM0_MEMORY of it (vmkit.lab.xen.command), guests what Xen leaves of the rest.
        vcpus: of each host, which are dom0's as well; None is 1 (command.VCPUS).
    """

    MIN_MEMORY: ClassVar[Bytes] = Bytes.parse("2G")

    memory: Bytes = Bytes(3 * 2**30)  # noqa: RUF009 - immutable
