"""What nested KVM hosts are asked to have. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from vmkit.errors import SpecError
from vmkit.values import Bytes

MAX_HOSTS: Final = 4
MIN_MEMORY: Final = Bytes.parse("1G")
HUGE_PAGE: Final = Bytes.parse("2M")
LOW_MEMORY: Final = Bytes.parse("2816M")
"""From here on q35 puts memory above 4 GiB too (pc_q35_init in QEMU's hw/i386/pc_q35.c), and SeaBIOS then the 64-bit
registers of PCI cards."""


@dataclass(frozen=True, slots=True)
class KvmOptions:
    """The hardware of each host.

    Attributes:
        sriov: an Intel 82576 network card (igb) with up to 7 virtual functions; brings the IOMMU with it.
        iommu: an Intel IOMMU with interrupt remapping.
        hugepages: how many pages of 2 MiB are set aside.
        shadow: KVM in the host works without nested paging, on shadow page tables.
        memory: of each host, huge pages included. The default is below LOW_MEMORY.
        vcpus: of each host; None is 2, or 1 where QEMU emulates more of them unsoundly (command.SOUND_SMP).
    """

    sriov: bool = False
    iommu: bool = False
    hugepages: int = 0
    shadow: bool = False
    memory: Bytes = Bytes(2752 * 2**20)  # noqa: RUF009 - immutable
    vcpus: int | None = None

    def checked(self) -> KvmOptions:
        """The same, with what one option brings along.

        Raises:
            SpecError: a value cannot be.
        """
        if self.vcpus is not None and not 1 <= self.vcpus <= 64:
            raise SpecError(f"{self.vcpus} is not between 1 and 64", path="--vcpus")
        if self.memory < MIN_MEMORY:
            raise SpecError(f"{self.memory} is too little for a host", path="--memory", hint=f"at least {MIN_MEMORY}")
        if self.hugepages < 0:
            raise SpecError(f"{self.hugepages} is negative", path="--hugepages")
        rest = self.memory - self.hugepages * HUGE_PAGE
        if rest < MIN_MEMORY * 3 // 4:
            raise SpecError(
                f"{self.hugepages} pages of {HUGE_PAGE} leave a host of {self.memory} too little",
                path="--hugepages",
                hint=f"give it more: --memory {Bytes(self.hugepages * HUGE_PAGE + MIN_MEMORY)}",
            )
        return KvmOptions(
            self.sriov, self.iommu or self.sriov, self.hugepages, self.shadow, Bytes(self.memory), self.vcpus
        )

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "memory": int(self.memory)}

    @classmethod
    def parse(cls, plain: dict[str, Any]) -> KvmOptions:
        """Read what `plain` gave."""
        return cls(**{**plain, "memory": Bytes(plain["memory"])})


def check_hosts(count: int) -> int:
    """Return a number of hosts that a lab can have.

    Raises:
        SpecError: it cannot.
    """
    if not 1 <= count <= MAX_HOSTS:
        raise SpecError(f"{count} is not between 1 and {MAX_HOSTS}", path="--hosts")
    return count
