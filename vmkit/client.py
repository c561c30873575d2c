"""The Python API. Everything that the command line does is a call of this class."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from vmkit.hotfix.api import Hotfixes
    from vmkit.hypervisor.host import Host
    from vmkit.image.api import Images
    from vmkit.lab.api import Labs
    from vmkit.migrate.api import Migrations
    from vmkit.migrate.jobs import Jobs
    from vmkit.vm.api import Vms


class Client:
    """A host, and what can be done on it.

    The connection opens at its first use; images and labs need none. A context manager that closes it.

    Args:
        uri: libvirt URI. None means $VMKIT_CONNECT, else $LIBVIRT_DEFAULT_URI, else qemu:///system.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri
        self._host: Host | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def host(self) -> Host:
        """The open connection.

        Raises:
            SpecError: the URI is not one.
            UnreachableError: the host does not answer.
        """
        from vmkit.hypervisor.host import Host

        if self._host is None:
            self._host = Host.connect(self.uri)
        return self._host

    def close(self) -> None:
        """Close the connection, if it is open."""
        if self._host is not None:
            self._host.close()
            self._host = None

    def _connect(self) -> Host:
        return self.host

    def console(self, name: str, *, force: bool = False, history: bool = True) -> str:
        """Connect this terminal with the serial console of a VM until Ctrl-]; returns how that ended.

        Raises:
            ConflictError: the VM is shut off, or somebody is attached and `force` is not set.
        """
        from vmkit.hypervisor.host import Host
        from vmkit.vm.console import attach

        with Host.connect(self.uri, events=True) as host:
            return attach(host, name, force=force, history=history)

    @cached_property
    def images(self) -> Images:
        """The image store of this machine."""
        from vmkit.image.api import Images

        return Images()

    @cached_property
    def vms(self) -> Vms:
        """The VMs of the host."""
        from vmkit.vm.api import Vms

        return Vms(self._connect)

    @cached_property
    def labs(self) -> Labs:
        """Throw-away hosts on this machine."""
        from vmkit.lab.api import Labs

        return Labs()

    @cached_property
    def migrations(self) -> Migrations:
        """Moving the host's VMs to other hosts."""
        from vmkit.migrate.api import Migrations

        return Migrations(self._connect)

    @cached_property
    def hotfixes(self) -> Hotfixes:
        """Patching the hypervisor under the host's VMs."""
        from vmkit.hotfix.api import Hotfixes

        return Hotfixes(self._connect)

    @cached_property
    def jobs(self) -> Jobs:
        """Long operations on this machine, of whatever process."""
        from vmkit.migrate.jobs import Jobs
        from vmkit.recovery import recover

        return Jobs(recover)
