"""The Python API. Everything that the command line does is a call of this class."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Self

from vmkit.progress import Reporter, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from vmkit.bench.api import Bench
    from vmkit.device.api import Devices
    from vmkit.device.sriov import Sriov
    from vmkit.host.doctor import Report
    from vmkit.hotfix.api import Hotfixes
    from vmkit.hotfix.far.many import HotfixHosts
    from vmkit.hypervisor.host import Host
    from vmkit.image.api import Images
    from vmkit.lab.api import Labs
    from vmkit.migrate.api import Migrations
    from vmkit.migrate.jobs import Jobs
    from vmkit.migrate.many.api import Hosts
    from vmkit.network.api import Networks
    from vmkit.vm.access.api import Guests
    from vmkit.vm.api import Vms
    from vmkit.vm.backup.api import Backups
    from vmkit.vm.change.api import Changes
    from vmkit.vm.clone.api import Clones
    from vmkit.vm.overview import Overviews
    from vmkit.vm.screens import Screens
    from vmkit.vm.snapshot.api import Snapshots


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
        from vmkit.hotfix.lifetime import attend_newcomers
        from vmkit.hypervisor.host import Host

        if self._host is None:
            self._host = Host.connect(self.uri)
            attend_newcomers()
        return self._host

    def close(self) -> None:
        """Close the connection, if it is open."""
        if self._host is not None:
            self._host.close()
            self._host = None

    def _connect(self) -> Host:
        return self.host

    def console(
        self, name: str, *, force: bool = False, history: bool = True, attached: Callable[[], None] = lambda: None
    ) -> str:
        """Connect this terminal with the serial console of a VM until Ctrl-]; returns how that ended.

        Unless `history` is False it begins with what was written before; then `attached` is called.

        Raises:
            ConflictError: the VM is shut off, or somebody is attached and `force` is not set.
        """
        from vmkit.hypervisor.host import Host
        from vmkit.vm.console import attach

        with Host.connect(self.uri, events=True) as host:
            return attach(host, name, force=force, history=history, attached=attached)

    def doctor(
        self,
        *,
        ssh: str | None = None,
        identity: Path | None = None,
        probe: bool = True,
        reporter: Reporter = silent,
    ) -> Report:
        """What the host can do, what it lacks, what that costs and what mends it.

        Without `probe` nothing is written anywhere. With it the micro image is put into the host's pool where libvirt
        offers KVM, and a small guest runs there once until the host boots again.

        Args:
            ssh: `[USER@]HOST[:PORT]` to look at; None for the client's own host, which must then be this machine or
                have a URI that leads through ssh.
            identity: private key for `ssh`; None for what ssh(1) takes by itself.
            probe: ask a probe guest whether KVM works.
            reporter: told what is being looked at.

        Raises:
            SpecError: `ssh` or the URI is not written as it should be.
            UnsupportedError: the URI names another machine without ssh.
            UnreachableError: the host does not let us in. That its libvirt does not answer is a finding.
        """
        from vmkit.host.doctor import examine
        from vmkit.hypervisor.host import Host, default_uri
        from vmkit.system.shell import Shell, ssh_uri
        from vmkit.vm.kvm import prove_facts

        prove = prove_facts if probe else None
        if ssh is None:
            uri = self.uri or default_uri()
            return examine(Shell.of_uri(uri), self._connect, uri, prove, reporter)
        reached = ssh_uri(ssh, str(identity.absolute()) if identity else None)
        uri = self.uri or reached
        shell = Shell.of_uri(reached)
        opened: list[Host] = []

        def connect() -> Host:
            opened.append(Host.connect(uri))
            return opened[0]

        try:
            return examine(shell, connect, uri, prove, reporter)
        finally:
            for host in opened:
                host.close()

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
    def clones(self) -> Clones:
        """Copies of the host's VMs, and VMs that go on from a saved memory."""
        from vmkit.vm.clone.api import Clones

        return Clones(self._connect)

    @cached_property
    def overviews(self) -> Overviews:
        """The VMs of the host with their addresses, also as an inventory."""
        from vmkit.vm.overview import Overviews

        return Overviews(self._connect)

    @cached_property
    def screens(self) -> Screens:
        """The screens of the host's VMs."""
        from vmkit.vm.screens import Screens

        return Screens(self._connect)

    @cached_property
    def guests(self) -> Guests:
        """What goes on inside the guests of the host: ssh, programs, files."""
        from vmkit.vm.access.api import Guests

        return Guests(self._connect)

    @cached_property
    def bench(self) -> Bench:
        """How fast guests are on the host, which has to be this machine."""
        from vmkit.bench.api import Bench

        return Bench(self._connect, self.doctor)

    @cached_property
    def labs(self) -> Labs:
        """Throw-away hosts on this machine."""
        from vmkit.lab.api import Labs

        return Labs()

    @cached_property
    def networks(self) -> Networks:
        """The networks of the host."""
        from vmkit.network.api import Networks

        return Networks(self._connect)

    @cached_property
    def backups(self) -> Backups:
        """Backups of the host's VMs, in directories of the host."""
        from vmkit.vm.backup.api import Backups

        return Backups(self._connect)

    @cached_property
    def snapshots(self) -> Snapshots:
        """Snapshots and saved memory of the host's VMs."""
        from vmkit.vm.snapshot.api import Snapshots

        return Snapshots(self._connect)

    @cached_property
    def changes(self) -> Changes:
        """Changing the host's VMs: one by one, or as a file says."""
        from vmkit.vm.change.api import Changes

        return Changes(self._connect)

    @cached_property
    def devices(self) -> Devices:
        """The PCI devices of the host."""
        from vmkit.device.api import Devices

        return Devices(self._connect)

    @cached_property
    def sriov(self) -> Sriov:
        """The SR-IOV cards of the host."""
        from vmkit.device.sriov import Sriov

        return Sriov(self._connect)

    @cached_property
    def migrations(self) -> Migrations:
        """Moving the host's VMs to other hosts."""
        from vmkit.migrate.api import Migrations

        return Migrations(self._connect)

    @cached_property
    def hosts(self) -> Hosts:
        """Moving many VMs: emptying a host, evening several out. It connects to the hosts that it is given."""
        from vmkit.migrate.many.api import Hosts

        return Hosts()

    @cached_property
    def hotfixes(self) -> Hotfixes:
        """Patching the hypervisor under the host's VMs."""
        from vmkit.hotfix.far.api import hotfixes_of

        return hotfixes_of(self.uri, self._connect)

    def hotfix_hosts(self, uris: Sequence[str], *, allow_unsigned: bool = False) -> HotfixHosts:
        """Patching the hypervisors of several hosts, one after the other."""
        from vmkit.hotfix.far.many import HotfixHosts

        return HotfixHosts(uris, allow_unsigned=allow_unsigned)

    @cached_property
    def jobs(self) -> Jobs:
        """Long operations on this machine, of whatever process."""
        from vmkit.migrate.jobs import Jobs
        from vmkit.recovery import recover

        return Jobs(recover)
