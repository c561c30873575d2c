"""The VMs of a host, as the Python API and the command line see them."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmkit.errors import VmkitError
from vmkit.hypervisor.host import Host
from vmkit.progress import Reporter, silent
from vmkit.vm.machine import Vm

if TYPE_CHECKING:
    from vmkit.host.measured import Measured
    from vmkit.plan import Plan
    from vmkit.vm.change.api import Source
    from vmkit.vm.change.report import Applied
    from vmkit.vm.readiness import Ready
    from vmkit.vm.spec import VmSpec


@dataclass(frozen=True, slots=True)
class Summary:
    """One row of `vmkit list`. `memory` is in bytes; `managed` says whether vmkit made the VM."""

    name: str
    state: str
    vcpus: int
    memory: int
    image: str | None
    managed: bool


@dataclass(frozen=True, slots=True)
class Created:
    """A VM that was made. `ready` is None where nobody waited; a `password` that was generated is kept nowhere else."""

    vm: Vm
    accelerator: str
    plan: Plan
    ready: Ready | None
    password: str | None = None


class Vms:
    """The VMs of one host.

    Args:
        connect: returns the open connection to it.
    """

    def __init__(self, connect: Callable[[], Host]) -> None:
        self._connect = connect

    def list(self) -> list[Summary]:
        """Every domain of the host, whoever made it, by name."""
        from vmkit.vm.metadata import NAMESPACE, remembered_in

        rows = []
        for domain in self._connect().domains():
            info = domain.info()
            element = domain.metadata(NAMESPACE)
            memory = remembered_in(element) if element else None
            rows.append(
                Summary(
                    name=domain.name,
                    state=info.state.value,
                    vcpus=info.vcpus,
                    memory=info.memory or info.max_memory,
                    image=memory.image if memory else None,
                    managed=memory is not None,
                )
            )
        return rows

    def get(self, name: str) -> Vm:
        """The VM of this name or uuid.

        Raises:
            NotFoundError: there is none; the hint names similar ones.
        """
        return Vm(self._connect().domain(name))

    def plan(self, spec: VmSpec | dict[str, Any], *, reporter: Reporter = silent) -> Plan:
        """What `create` would choose and do, with reasons. Raises as `create` does before it touches anything."""
        from vmkit.vm.create import prepare
        from vmkit.vm.spec import parse

        return prepare(self._connect(), parse(spec), reporter).plan

    def explain(self, spec: VmSpec | dict[str, Any], *, reporter: Reporter = silent) -> Plan:
        """As `plan`, with what `vmkit bench host` measured on this host beside each choice that has a price.

        That a VM of this name exists does not matter here.
        """
        from vmkit.vm.create import prepare
        from vmkit.vm.explain import with_measured
        from vmkit.vm.spec import parse

        host = self._connect()
        return with_measured(prepare(host, parse(spec), reporter, again=True).plan, _measured(host))

    def explain_vm(self, name: str) -> Plan:
        """What the XML of a VM that exists, whoever made it, says about how it is virtualised.

        Raises:
            NotFoundError: there is none of this name.
        """
        from vmkit.vm.explain import explained, with_measured
        from vmkit.vm.machine_facts import MachineFacts, look

        host = self._connect()
        vm = self.get(name)
        facts = look(host) if host.driver == "QEMU" else MachineFacts()
        return with_measured(explained(vm.domain.xml(), host.uri, facts, vm.remembered()), _measured(host))

    def create(
        self,
        spec: VmSpec | dict[str, Any],
        *,
        wait: bool = False,
        start: bool = True,
        deadline: float = 90.0,
        reporter: Reporter = silent,
    ) -> Created:
        """Make a VM and start it.

        Args:
            spec: what to make.
            wait: return when it is ready.
            start: leave it shut off if False.
            deadline: seconds for the wait.
            reporter: told of each step.

        Raises:
            SpecError, NotFoundError, ConflictError, UnsupportedError, RefusedError: nothing was touched.
            EffectError: a step failed; what was made is removed again.
            DeadlineError: it was made and runs, but is not ready; it is kept.
        """
        from vmkit.vm.create import build, prepare
        from vmkit.vm.spec import parse

        host = self._connect()
        prepared = prepare(host, parse(spec), reporter)
        vm = Vm(build(host, prepared, reporter, start=start))
        try:
            ready = vm.wait(deadline=deadline, reporter=reporter) if wait and start else None
        except VmkitError as e:
            if prepared.password:  # it is known nowhere else
                e.details += (f"the password that was generated: {prepared.password}",)
            raise
        return Created(vm, prepared.design.accelerator, prepared.plan, ready, prepared.password)

    def create_many(
        self,
        specs: Sequence[VmSpec | dict[str, Any]],
        *,
        wait: bool = False,
        start: bool = True,
        deadline: float = 90.0,
        workers: int | None = None,
        reporter: Reporter = silent,
    ) -> builtins.list[Created]:
        """Make several VMs, `workers` at a time (None: as many as the host has CPUs). Otherwise as `create`.

        Raises:
            SpecError, RefusedError: one of them cannot be made; nothing was touched.
            EffectError: some failed and are removed again, the others are there; says which, and why.
        """
        from vmkit.vm import many
        from vmkit.vm.spec import parse

        parsed = [parse(spec) for spec in specs]
        outcome = many.create(
            self._connect(), parsed, wait=wait, start=start, deadline=deadline, workers=workers, reporter=reporter
        )
        return builtins.list(outcome.check("creating the VMs").values())

    def delete_all(self, *, force: bool = False, reporter: Reporter = silent) -> dict[str, tuple[str, ...]]:
        """Delete every VM of the host that vmkit made; says what was removed, by name.

        Raises:
            EffectError: some could not be deleted (without `force`: those that run); the others are gone.
        """
        from vmkit.vm import many

        host = self._connect()
        ours = {vm.name: vm for d in host.domains() if (vm := Vm(d)).remembered() is not None}
        outcome = many.for_each(
            builtins.list(ours),
            lambda name, _notes: ours[name].delete(force=force),
            workers=many.at_once(host),
            reporter=reporter,
        )
        return outcome.check("deleting the VMs")

    def apply(self, source: Source, **options: Any) -> builtins.list[Applied]:
        """Bring about what a file (or a list of specs) says; see vmkit.vm.change.api.Changes.apply."""
        from vmkit.vm.change.api import Changes

        return Changes(self._connect).apply(source, **options)


def _measured(host: Host) -> Measured | None:
    """The last run of `vmkit bench host`; it is of this machine, and says nothing of another."""
    from vmkit.host.measured import load

    return load() if host.local else None
