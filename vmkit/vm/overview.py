"""The VMs of a host with what costs a question to each: addresses, above all."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from vmkit.errors import NotFoundError
from vmkit.hypervisor.domain import DomainState

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain
    from vmkit.hypervisor.host import Host

_AT_ONCE: Final = 8
"""VMs that are asked at the same time. A guest agent that is stuck keeps only its own VM waiting."""


@dataclass(frozen=True, slots=True)
class Overview:
    """One VM, as `vmkit list -o wide` and `vmkit inventory` tell it.

    Attributes:
        memory: bytes.
        image: that it was made from; None for VMs of other tools, and for those without one.
        managed: whether vmkit made it.
        accelerator: 'kvm', 'tcg', 'xen', ...
        addresses: IP addresses that are known now, the best first; empty where it does not run.
        user: whom cloud-init lets in; None if that is not known.
    """

    name: str
    state: str
    vcpus: int
    memory: int
    image: str | None
    managed: bool
    accelerator: str
    addresses: tuple[str, ...]
    autostart: bool
    uuid: str
    user: str | None = None
    entrance: tuple[str, int] | None = None
    key: str | None = None
    labels: dict[str, str] = field(default_factory=dict)


class Overviews:
    """The VMs of a host, whoever made them.

    Args:
        connect: returns the open connection.
    """

    def __init__(self, connect: Callable[[], Host]) -> None:
        self._connect = connect

    def list(self) -> list[Overview]:
        """Every VM by name; one that is deleted meanwhile is left out.

        Raises:
            UnreachableError: the host does not answer.
        """
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = list(pool.map(look, self._connect().domains()))
        return [one for one in found if one is not None]

    def inventory(self, *, reach: bool = True) -> dict[str, Any]:
        """The VMs as an inventory of Ansible's; see vmkit.vm.inventory.

        Args:
            reach: tell also how the VMs are reached from here, where their host is another machine.
        """
        from vmkit.vm.inventory import inventory

        host = self._connect()
        return inventory(self.list(), host.uri if reach else "")

    def variables(self, name: str, *, reach: bool = True) -> dict[str, Any]:
        """What Ansible is told about one VM; {} if there is none of that name, as Ansible has it."""
        from vmkit.vm.inventory import variables

        host = self._connect()
        try:
            found = look(host.domain(name))
        except NotFoundError:
            return {}
        return variables(found, host.uri if reach else "") if found else {}


def look(domain: Domain) -> Overview | None:
    """One VM; None if it is gone."""
    from vmkit.vm.access import login
    from vmkit.vm.addresses import Finder
    from vmkit.vm.describe import describe
    from vmkit.vm.metadata import NAMESPACE, remembered_in

    try:
        info = domain.info()
        element = domain.metadata(NAMESPACE)
        memory = remembered_in(element) if element else None
        described = describe(domain.xml())
        found = Finder(domain).look() if info.state is DomainState.RUNNING else None
        keys = login.keys_here(memory.access) if memory and memory.access else ()
        return Overview(
            name=domain.name,
            state=info.state.value,
            vcpus=info.vcpus,
            memory=info.memory or info.max_memory,
            image=memory.image if memory else None,
            managed=memory is not None,
            accelerator=described.accelerator,
            addresses=found.good if found else (),
            autostart=domain.persistent and domain.autostart,
            uuid=domain.uuid,
            user=login.user_of(memory),
            entrance=login.entrance(found.best, described.nics, login.PORT) if found else None,
            key=str(keys[0]) if keys else None,
            labels=dict(memory.spec.get("labels") or {}) if memory else {},
        )
    except NotFoundError:
        return None
