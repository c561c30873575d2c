"""The same thing done to many VMs: a few at a time, none lost to the failure of another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from vmkit.errors import CancelledError, EffectError, SpecError, VmkitError
from vmkit.hypervisor.host import Host
from vmkit.progress import Event, Finished, Note, Reporter, Started, silent
from vmkit.system.clock import stopwatch
from vmkit.system.interrupts import deferred

if TYPE_CHECKING:
    from vmkit.vm.api import Created
    from vmkit.vm.spec import VmSpec

T = TypeVar("T")

AT_ONCE_LIMIT: Final = 8
"""libvirt serves five calls of a connection at a time (max_client_requests), and boots compete for the CPUs."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What became of each: results and errors by name, in the order of the names."""

    done: dict[str, T] = field(default_factory=dict)
    failed: dict[str, VmkitError] = field(default_factory=dict)

    def check(self, what: str) -> dict[str, T]:
        """The results, if nothing failed.

        Raises:
            VmkitError: the only error, where nothing else was to be done.
            CancelledError: it was stopped; says what was not done.
            EffectError: some failed; says which, and why.
        """
        if not self.failed:
            return self.done
        first = next(iter(self.failed.values()))
        if len(self.failed) == 1 and not self.done:
            raise first
        details = tuple(
            line for name, e in self.failed.items() for line in (f"{name}: {e.message}", *(f"  {d}" for d in e.details))
        )
        count = f"{len(self.failed)} of {len(self.failed) + len(self.done)}"
        left = f"done: {', '.join(self.done)}" if self.done else "none was"
        if all(isinstance(e, CancelledError) for e in self.failed.values()):
            raise CancelledError(f"{what} was stopped; {left}", hint=first.hint, details=details)
        raise EffectError(f"{what} failed for {count}", left=left, hint=first.hint, details=details)


def at_once(host: Host, wish: int | None = None) -> int:
    """How many are worked on at a time: as many as the host has CPUs, 2 at least, unless somebody says otherwise.

    Raises:
        SpecError: the wish is below 1 or above 64.
    """
    if wish is not None:
        if not 1 <= wish <= 64:
            raise SpecError(f"{wish} is not between 1 and 64", path="--at-once")
        return wish
    return max(2, min(AT_ONCE_LIMIT, host.node()[2]))


def for_each(
    names: Sequence[str], act: Callable[[str, Reporter], T], *, workers: int, reporter: Reporter = silent
) -> Outcome[T]:
    """Call `act` for every name, `workers` at a time; what fails for one does not keep the others from their turn.

    After Ctrl-C nothing new is begun. `act` runs in threads; it is given a reporter that lets notes through.
    """
    lock = threading.Lock()

    def tell(event: Event) -> None:
        with lock:
            reporter(event)

    def notes(event: Event) -> None:
        if isinstance(event, Note):
            tell(event)

    results: dict[str, T] = {}
    errors: dict[str, VmkitError] = {}
    with deferred() as interrupted:

        def one(name: str) -> None:
            if by := interrupted():
                errors[name] = CancelledError(f"not begun: {by}")
                return
            clock = stopwatch()
            tell(Started(name))
            try:
                results[name] = act(name, notes)
                tell(Finished(name, clock()))
            except VmkitError as e:
                errors[name] = e
                tell(Note(f"{name}: {e.message}", warning=True))

        if workers == 1 or len(names) < 2:
            for name in names:
                one(name)
        else:
            from concurrent.futures import ThreadPoolExecutor  # one VM alone does not pay for it

            with ThreadPoolExecutor(workers, thread_name_prefix="vmkit") as pool:
                for future in [pool.submit(one, name) for name in names]:
                    future.result()
    return Outcome({n: results[n] for n in names if n in results}, {n: errors[n] for n in names if n in errors})


def create(
    host: Host,
    specs: Sequence[VmSpec],
    *,
    wait: bool = False,
    start: bool = True,
    deadline: float = 90.0,
    workers: int | None = None,
    reporter: Reporter = silent,
) -> Outcome[Created]:
    """Make VMs, a few at a time. Every one is checked before the first is touched.

    With `wait` a VM's turn ends when it is ready: so many are never booting at once that none of them gets anywhere.

    Args:
        host: where.
        specs: what to make; names are unique.
        wait: for each to be ready.
        start: leave them shut off if False.
        deadline: seconds for each wait, from the start of that VM.
        workers: how many at a time; None for as many as the host has CPUs.
        reporter: told of each VM.

    Raises:
        SpecError, RefusedError: one of them cannot be made; nothing was touched.
    """
    from vmkit.vm.api import Created
    from vmkit.vm.create import build, prepare
    from vmkit.vm.machine import Vm

    prepared = {spec.name: prepare(host, spec, reporter) for spec in specs}
    if len(prepared) < len(specs):
        raise SpecError("a name is there twice", path="name")
    wanted = sum(p.design.memory for p in prepared.values())
    if host.driver == "QEMU" and start and wanted > (free := host.memory()[1]):
        text = f"{len(specs)} VMs have {wanted >> 20} MiB of memory together, and {free >> 20} MiB are free"
        reporter(Note(f"{text}: the host may run out of it", warning=True))

    def one(name: str, notes: Reporter) -> Created:
        wanted = prepared[name]
        vm = Vm(build(host, wanted, notes, start=start))
        try:
            ready = vm.wait(deadline=deadline, reporter=notes) if wait and start else None
        except VmkitError as e:
            if wanted.password:  # it is known nowhere else
                e.details += (f"the password of {name} that was generated: {wanted.password}",)
            raise
        return Created(vm, wanted.design.accelerator, wanted.plan, ready, wanted.password)

    return for_each(list(prepared), one, workers=at_once(host, workers), reporter=reporter)
