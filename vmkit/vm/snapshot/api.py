"""Snapshots of a host's VMs, as the Python API and the command line see them."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkit.hypervisor.host import Host
from vmkit.progress import Reporter, silent
from vmkit.vm.snapshot.model import Snapshot

if TYPE_CHECKING:
    from vmkit.plan import Plan


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot that was made.

    Attributes:
        vm: of which VM.
        snapshot: as libvirt has it now.
        seconds: that libvirt took; with memory the guest stood still for most of them.
        plan: what was chosen and why.
    """

    vm: str
    snapshot: Snapshot
    seconds: float
    plan: Plan


@dataclass(frozen=True, slots=True)
class Reverted:
    """A VM that was brought back.

    Attributes:
        vm, snapshot: which, and to which.
        state: the VM's state now.
        seconds: that libvirt took.
        verified: what was looked at afterwards and found right.
        warnings: what to know about it.
    """

    vm: str
    snapshot: str
    state: str
    seconds: float
    verified: tuple[str, ...]
    warnings: tuple[str, ...]


class Snapshots:
    """Snapshots of the VMs of one host.

    Args:
        connect: returns the open connection to it.
    """

    def __init__(self, connect: Callable[[], Host]) -> None:
        self._connect = connect

    def list(self, vm: str) -> builtins.list[Snapshot]:
        """The snapshots of a VM, whoever made them, each after its parent.

        Raises:
            NotFoundError: there is no such VM.
        """
        from vmkit.vm.snapshot.facts import listing

        return [*listing(self._connect().domain(vm))]

    def tree(self, vm: str) -> builtins.list[str]:
        """The same as lines of a tree, with the place where the VM is now."""
        from vmkit.vm.snapshot.model import tree

        return [*tree(self.list(vm))]

    def plan_create(self, vm: str, name: str | None = None, *, memory: bool = True, description: str = "") -> Plan:
        """What `create` would choose and do, with reasons. Raises as it does before anything is touched."""
        from vmkit.vm.snapshot import decide, facts

        found = facts.gather(self._connect().domain(vm))
        return decide.take(found, name, memory=memory, description=description).plan

    def create(
        self,
        vm: str,
        name: str | None = None,
        *,
        memory: bool = True,
        description: str = "",
        reporter: Reporter = silent,
    ) -> Taken:
        """Take a snapshot.

        Args:
            vm: of which VM.
            name: of the snapshot; None for the first free one of 'snap1', 'snap2', ...
            memory: hold the memory too, where the VM is on; the guest stands still while it is written. Without it the
                guest's agent, if there is one, holds the file systems still for a moment.
            description: one line.
            reporter: told how far it is.

        Raises:
            SpecError, RefusedError: nothing was touched.
            EffectError, CancelledError: the VM goes on, and nothing is left of the snapshot.
        """
        from vmkit.vm.snapshot import decide, facts, perform

        domain = self._connect().domain(vm)
        decision = decide.take(facts.gather(domain), name, memory=memory, description=description)
        seconds = perform.take(domain, decision, reporter)
        made = next(s for s in facts.listing(domain) if s.name == decision.name)
        return Taken(domain.name, made, seconds, decision.plan)

    def save(self, vm: str, *, reporter: Reporter = silent) -> float:
        """Write a VM's memory to disk and end it; its next start goes on there. Returns the seconds it took.

        Raises:
            ConflictError, UnsupportedError: nothing was touched.
            EffectError, CancelledError: it could not be saved; it goes on.
        """
        from vmkit.vm import saved

        return saved.save(self._connect().domain(vm), reporter=reporter)

    def restore(self, vm: str, *, reporter: Reporter = silent) -> float:
        """Let a VM that was saved go on; returns the seconds it took.

        Raises:
            ConflictError: it is not saved. EffectError: QEMU cannot take the memory up; it is still there.
        """
        from vmkit.vm import saved

        return saved.restore(self._connect().domain(vm), reporter=reporter)

    def drop_saved(self, vm: str) -> bool:
        """Throw a VM's saved memory away: its next start is a boot. False if there is none."""
        from vmkit.vm import saved

        return saved.drop(self._connect().domain(vm))

    def plan_revert(self, vm: str, name: str, *, start: bool = False) -> Plan:
        """What `revert` would do."""
        from vmkit.vm.snapshot import decide, facts

        return decide.revert(facts.gather(self._connect().domain(vm), deep=True), name, start=start).plan

    def revert(self, vm: str, name: str, *, start: bool = False, reporter: Reporter = silent) -> Reverted:
        """Bring a VM back to a snapshot, and see that it is so. What happened since is lost.

        Args:
            vm: which VM.
            name: which snapshot.
            start: boot it, where the snapshot holds no memory.
            reporter: told how far it is.

        Raises:
            NotFoundError, RefusedError: nothing was touched.
            EffectError: libvirt failed, or the VM is not as it was; says how it is.
        """
        from vmkit.vm.snapshot import decide, facts, perform

        domain = self._connect().domain(vm)
        decision = decide.revert(facts.gather(domain, deep=True), name, start=start)
        seconds, seen = perform.go_back(domain, decision, reporter)
        return Reverted(domain.name, name, domain.state().value, seconds, seen, decision.plan.warnings)

    def plan_delete(self, vm: str, names: Sequence[str], *, children: bool = False) -> Plan:
        """What `delete` would do."""
        from vmkit.vm.snapshot import decide, facts

        return decide.remove(facts.gather(self._connect().domain(vm)), names, children=children).plan

    def delete(
        self, vm: str, names: Sequence[str], *, children: bool = False, reporter: Reporter = silent
    ) -> tuple[str, ...]:
        """Delete snapshots; returns their names in the order in which they went. The VM itself stays as it is.

        Args:
            vm: of which VM.
            names: which.
            children: also all that came after them.
            reporter: told how far it is.

        Raises:
            NotFoundError, RefusedError: nothing was touched.
            EffectError, CancelledError: says which are left.
        """
        from vmkit.vm.snapshot import decide, facts, perform

        domain = self._connect().domain(vm)
        decision = decide.remove(facts.gather(domain), names, children=children)
        perform.remove(domain, decision, reporter)
        return decision.names
