"""What nested KVM hosts are asked to have. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from vmkit.errors import SpecError
from vmkit.lab.nested.options import HostOptions
from vmkit.values import Bytes

HUGE_PAGE: Final = Bytes.parse("2M")
LOW_MEMORY: Final = Bytes.parse("2816M")
"""From here on q35 puts memory above 4 GiB too (pc_q35_init in QEMU's hw/i386/pc_q35.c), and SeaBIOS then the 64-bit
registers of PCI cards."""


@dataclass(frozen=True, slots=True)
class KvmOptions(HostOptions):
    """The hardware of each host.

    Attributes:
        memory: of each host, huge pages included. The default is below LOW_MEMORY.
        vcpus: of each host; None is 2, or 1 where QEMU emulates more of them unsoundly (command.SOUND_SMP).
        sriov: an Intel 82576 network card (igb) with up to 7 virtual functions; brings the IOMMU with it.
        iommu: an Intel IOMMU with interrupt remapping.
        hugepages: how many pages of 2 MiB are set aside.
        shadow: KVM in the host works without nested paging, on shadow page tables.
    """

    memory: Bytes = Bytes(2752 * 2**20)  # noqa: RUF009 - immutable
    sriov: bool = False
    iommu: bool = False
    hugepages: int = 0
    shadow: bool = False

    def checked(self) -> KvmOptions:
        """The same, with what one option brings along.

        Raises:
            SpecError: a value cannot be.
        """
        HostOptions.checked(self)
        if self.hugepages < 0:
            raise SpecError(f"{self.hugepages} is negative", path="--hugepages")
        rest = self.memory - self.hugepages * HUGE_PAGE
        if rest < self.MIN_MEMORY * 3 // 4:
            raise SpecError(
                f"{self.hugepages} pages of {HUGE_PAGE} leave a host of {self.memory} too little",
                path="--hugepages",
                hint=f"give it more: --memory {Bytes(self.hugepages * HUGE_PAGE + self.MIN_MEMORY)}",
            )
        return replace(self, iommu=self.iommu or self.sriov)
