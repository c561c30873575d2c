"""What nested hosts of every kind are asked to have. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, Self

from vmkit.errors import SpecError
from vmkit.values import Bytes

MAX_HOSTS: Final = 4


@dataclass(frozen=True, slots=True)
class HostOptions:
    """The hardware of each host. A kind adds to it.

    Attributes:
        memory: of each host.
        vcpus: of each host; None leaves it to the kind.
    """

    MIN_MEMORY: ClassVar[Bytes] = Bytes.parse("1G")

    memory: Bytes
    vcpus: int | None = None

    def checked(self) -> Self:
        """The same, with what one option brings along.

        Raises:
            SpecError: a value cannot be.
        """
        if self.vcpus is not None and not 1 <= self.vcpus <= 64:
            raise SpecError(f"{self.vcpus} is not between 1 and 64", path="--vcpus")
        if self.memory < self.MIN_MEMORY:
            raise SpecError(
                f"{self.memory} is too little for a host", path="--memory", hint=f"at least {self.MIN_MEMORY}"
            )
        return self

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "memory": int(self.memory)}

    @classmethod
    def parse(cls, plain: dict[str, Any]) -> Self:
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
