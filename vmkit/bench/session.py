"""One bench, carried out: guests are made, samples are taken in turn, and everything is taken away again."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from vmkit.bench import lending, paging
from vmkit.bench.cleanup import make_bridge, remove_bridge, remove_vms, undo
from vmkit.bench.layout import Guest, Layout, device, spec
from vmkit.bench.native import PORT, Native
from vmkit.bench.workloads import Workload
from vmkit.errors import CancelledError, EffectError, SpecError, VmkitError
from vmkit.host.measured import Area, Mode, Skipped
from vmkit.hypervisor.host import Host
from vmkit.image import bench
from vmkit.progress import Advanced, Finished, Note, Reporter, Started
from vmkit.system.clock import Deadline, stopwatch
from vmkit.system.interrupts import deferred
from vmkit.system.journal import Entry, journalled
from vmkit.vm.api import Vms
from vmkit.vm.machine import Vm

READY: Final = 1200.0
"""Seconds that a guest may take to get ready: a guest on TCG in a guest on TCG takes minutes."""
SLOWEST: Final = 300.0
"""Seconds that a program may take to start and end, on top of the time it measures."""
_TRIES: Final = 90.0
"""Seconds within which the guest's iperf3 has to answer."""

Key = tuple[Area, str, Mode, str]
"""Area, figure, mode, accelerator."""


@dataclass(slots=True)
class Samples:
    """What was measured so far."""

    values: dict[Key, list[float]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    failed: dict[tuple[Area, str, Mode], str] = field(default_factory=dict)

    def add(self, workload: Workload, mode: Mode, accelerator: str, text: str) -> None:
        """Read one run's output; what cannot be read is kept as the reason that there is no figure."""
        try:
            found = workload.parse(text)
        except SpecError as e:
            said = f": {e.details[-1]}" if e.details else ""
            self.failed[workload.area, workload.name, mode] = f"{e.message}{said}"
            return
        for figure, unit in workload.figures:
            self.values.setdefault((workload.area, figure, mode, accelerator), []).append(found[figure])
            self.units[figure] = unit

    def skipped(self) -> tuple[Skipped, ...]:
        """Modes in which a workload gave nothing."""
        have = {(a, m) for a, _, m, _ in self.values}
        return tuple(
            Skipped(mode, f"{name}: {reason}", area)
            for (area, name, mode), reason in self.failed.items()
            if (area, mode) not in have or name
        )


class Session:
    """One bench.

    Args:
        host: where; it has to be this machine.
        image: name of the bench image.
        native: the host itself.
        layout: what is done.
        workloads: what is run.
        seconds: of one sample.
        repeats: samples of each.
        reporter: told of each step.
    """

    def __init__(
        self,
        host: Host,
        image: str,
        native: Native,
        layout: Layout,
        workloads: tuple[Workload, ...],
        seconds: int,
        repeats: int,
        modes: tuple[Mode, ...],
        reporter: Reporter,
    ) -> None:
        self._host, self._image, self._native, self._layout = host, image, native, layout
        self._workloads, self._seconds, self._repeats, self._modes = workloads, seconds, repeats, modes
        self._reporter = reporter
        self._vms: dict[str, Vm] = {}
        self._done = 0
        self._check: Callable[[], None] = lambda: None
        self.samples = Samples()
        self.skipped: list[Skipped] = list(layout.skipped)

    def run(self) -> None:
        """Measure. Whatever happens, the guests and the network are gone afterwards and KVM is as it was.

        Raises:
            CancelledError: Ctrl-C or a signal.
            VmkitError: a guest could not be made, or something could not be taken away: the next command does that.
        """
        data = {"uri": self._host.uri}
        with journalled("bench", self._host.hostname(), "begin", **data) as entry, deferred() as interrupted:

            def check() -> None:
                if by := interrupted():
                    raise CancelledError(f"measuring was stopped by {by}; nothing is left of it")

            self._check = check
            try:
                self._phases(entry)
            except BaseException as e:
                if (by := interrupted()) and not isinstance(e, CancelledError):
                    raise CancelledError(f"measuring was stopped by {by}") from e
                raise
            finally:
                self._undo(entry)

    def _undo(self, entry: Entry) -> None:
        try:
            undo(self._host, entry.record.data, self._reporter)
        except VmkitError as e:
            entry.keep = True
            self._reporter(Note(f"not everything could be taken away, the next command tries again: {e.message}", True))

    def _phases(self, entry: Entry) -> None:
        seconds = stopwatch()
        self._reporter(Started("measure", f"{len(self._workloads)} workloads, {self._repeats} times"))
        current: int | None = None
        here: tuple[Guest, ...] = ()
        with contextlib.ExitStack() as stack:
            scene = _Scene(self._native, stack)
            for number in self._layout.order(self._repeats):
                guests = self._layout.phases[number]
                if number != current:
                    current, here = number, self._enter(entry, guests)
                self._round(here, scene)
        self._reporter(Finished("measure", seconds(), f"{self._done} runs"))

    def _enter(self, entry: Entry, guests: tuple[Guest, ...]) -> tuple[Guest, ...]:
        """Begin a phase: guests of the one before go, KVM pages as this one wants, its guests are made."""
        entry.advance("guests")
        remove_vms(self._host)
        remove_bridge()
        self._vms.clear()
        wanted = next((g.mode for g in guests if g.mode is not Mode.TCG), None)
        if self._layout.reload and wanted is not None:
            paging.switch(entry, wanted)
        made = []
        for guest in guests:
            self._check()
            try:
                made.append(self._make(entry, guest))
                self._vms[guest.name].pause()  # an idle guest takes time too, most of all an emulated one
            except CancelledError:
                raise
            except VmkitError as e:
                # It would take time from those that are measured.
                remove_vms(self._host, guest.name)
                self.skipped.append(Skipped(guest.mode, f"the guest did not get ready: {e.message}"))
                self._reporter(Note(f"{guest.mode.value} is left out: {e.message}", warning=True))
        return tuple(made)

    def _make(self, entry: Entry, guest: Guest) -> Guest:
        """Make a guest and get it ready. Returns what can be measured in it: perhaps all but a virtual function."""
        seconds = stopwatch()
        self._reporter(Started("guest", guest.mode.value))
        if guest.bridged:
            make_bridge(guest.bridged)
        guest = self._start(entry, guest)
        vm = self._vms[guest.name]
        vm.wait(deadline=READY, reporter=lambda _event: self._check())
        if guest.card and guest.card.mac not in _must(vm, ["sh", "-c", "cat /sys/class/net/*/address"]):
            guest = self._without_card(guest, "the guest has no driver for it")
        script = ["load-modules /lib/modules/load-late 2>/dev/null", "mount -t ext4 -o ro /dev/vda /mnt"]
        script += ["mount -t tmpfs tmpfs /tmp"]
        for mode in guest.disks:
            disk = device(mode)
            # Blocks that were never written are not read from anywhere; and the devices come up in their own time.
            script.append(f"for i in $(seq 200); do [ -b {disk} ] && break; sleep 0.1; done")
            script.append(f"dd if=/dev/zero of={disk} bs=1M count=64 conv=fsync 2>/dev/null")
        _must(vm, ["sh", "-ec", "\n".join(script).replace("2>/dev/null\nmount", "2>/dev/null || true\nmount", 1)])
        self._reporter(Finished("guest", seconds(), guest.mode.value))
        return guest

    def _start(self, entry: Entry, guest: Guest) -> Guest:
        """Start a guest, and without a virtual function if it cannot be had: the rest is measured all the same."""
        vms = Vms(lambda: self._host)
        if guest.card is not None:
            try:
                lending.set_up(self._host, entry, guest.card, self._reporter)
                self._vms[guest.name] = vms.create(spec(guest, self._image)).vm
            except VmkitError as e:
                self._check()
                guest = self._without_card(guest, e.message)
            else:
                return guest
        self._vms[guest.name] = vms.create(spec(guest, self._image)).vm
        return guest

    def _without_card(self, guest: Guest, reason: str) -> Guest:
        skipped = Skipped(Mode.VF, reason, Area.NETWORK)
        if skipped not in self.skipped:  # a guest is made again in each of its phases
            self.skipped.append(skipped)
        self._reporter(Note(f"{Mode.VF.value} is left out: {reason}", warning=True))
        return guest.without_card()

    def _round(self, guests: tuple[Guest, ...], scene: _Scene) -> None:
        """One sample of every workload in every mode, the modes of a workload one right after the other."""
        for workload in self._workloads:
            if Mode.NATIVE in self._modes:
                self._sample(workload, Mode.NATIVE, "", lambda w=workload: self._on_host(w, scene))  # type: ignore[misc]
            for guest in guests:
                for mode in _modes_of(workload.area, guest):
                    self._sample(
                        workload,
                        mode,
                        guest.accelerator,
                        lambda w=workload, g=guest, m=mode: self._in_guest(w, g, m),  # type: ignore[misc]
                    )

    def _sample(self, workload: Workload, mode: Mode, accelerator: str, take: Callable[[], str]) -> None:
        self._check()
        total = _runs(self._layout, self._workloads, self._modes) * self._repeats
        self._reporter(Advanced("measure", self._done, total, f"{workload.name} {mode.value}"))
        try:
            text = take()
        except CancelledError:
            raise
        except VmkitError as e:
            self._check()
            self.samples.failed[workload.area, workload.name, mode] = e.message
        else:
            self.samples.add(workload, mode, accelerator, text)
        self._done += 1

    def _on_host(self, workload: Workload, scene: _Scene) -> str:
        where = scene.where(workload.area)
        argv = workload.arguments(self._seconds, where)
        pinned = workload.area is not Area.NETWORK
        done = self._native.run(workload.program, argv, SLOWEST + workload.runs * self._seconds, pinned=pinned)
        return done.stdout + done.stderr

    @contextlib.contextmanager
    def _awake(self, guest: Guest) -> Iterator[Vm]:
        """The guest, which runs for the block alone."""
        vm = self._vms[guest.name]
        vm.resume()
        try:
            yield vm
        finally:
            with contextlib.suppress(VmkitError):  # it may have ended
                vm.pause()

    def _in_guest(self, workload: Workload, guest: Guest, mode: Mode) -> str:
        with self._awake(guest) as vm:
            return self._in(vm, workload, guest, mode)

    def _in(self, vm: Vm, workload: Workload, guest: Guest, mode: Mode) -> str:
        limit = SLOWEST + workload.runs * self._seconds
        if workload.area is Area.NETWORK:
            here, there = guest.ends(mode)
            # Bound to the host's end: without its address the samples would take the default route.
            argv = [*workload.arguments(self._seconds, there), "--bind", here]
            # A server for one client: one that goes on listening gives up after errors. A second one ends by itself.
            serve = bench.command("/mnt/bench", "iperf3", ["--server", "--daemon", "--one-off", "--port", PORT])

            def listen() -> None:
                if mode is Mode.VF and guest.card is not None:
                    lending.address(guest.card)
                vm.guest_exec(serve, timeout=SLOWEST)

            return self._ask(workload.program, argv, limit, listen)
        where = device(mode) if workload.area is Area.DISK else "/tmp"  # noqa: S108 - in the guest
        argv = bench.command("/mnt/bench", workload.program, workload.arguments(self._seconds, where))
        done = vm.guest_exec(argv, timeout=limit)
        return done.stdout + done.stderr

    def _ask(self, program: str, argv: list[str], limit: float, listen: Callable[[], None]) -> str:
        """A client on the host. The guest's server may take a while until it listens, and ends with a failed test."""
        deadline = Deadline(_TRIES)
        for attempt in itertools.count():
            if attempt % 5 == 0:
                listen()
            done = self._native.run(program, argv, limit, pinned=False)
            if done.status == 0 or deadline.passed:
                break
            self._check()
            time.sleep(2.0)
        return done.stdout + done.stderr


class _Scene:
    """What native runs need; made when first asked for."""

    def __init__(self, native: Native, stack: contextlib.ExitStack) -> None:
        self._native, self._stack = native, stack
        self._found: dict[Area, str] = {}

    def where(self, area: Area) -> str:
        if area not in self._found:
            if area is Area.DISK:
                self._found[area] = self._stack.enter_context(self._native.data_file())
            elif area is Area.NETWORK:
                self._found[area] = self._stack.enter_context(_listening(self._native))
            else:
                shared = "/dev/shm"  # noqa: S108 - memory, like /tmp of the guest
                self._found[area] = shared if os.access(shared, os.W_OK) else "/tmp"  # noqa: S108
        return self._found[area]


@contextlib.contextmanager
def _listening(native: Native) -> Iterator[str]:
    with native.server() as address:
        time.sleep(1.0)
        yield address


def _modes_of(area: Area, guest: Guest) -> tuple[Mode, ...]:
    match area:
        case Area.DISK:
            return guest.disks
        case Area.NETWORK:
            return guest.nics
    return (guest.mode,)


def _runs(layout: Layout, workloads: tuple[Workload, ...], modes: tuple[Mode, ...]) -> int:
    """Program runs of one repetition."""
    native = len(workloads) * len(layout.phases) if Mode.NATIVE in modes else 0
    return native + sum(len(_modes_of(w.area, g)) for phase in layout.phases for g in phase for w in workloads)


def estimate(layout: Layout, workloads: tuple[Workload, ...], modes: tuple[Mode, ...], seconds: int) -> float:
    """Seconds that one repetition takes at least: the samples alone."""
    native = sum(w.runs for w in workloads) * len(layout.phases) if Mode.NATIVE in modes else 0
    guests = sum(w.runs * len(_modes_of(w.area, g)) for p in layout.phases for g in p for w in workloads)
    return float((native + guests) * seconds)


def _must(vm: Vm, argv: list[str]) -> str:
    done = vm.guest_exec(argv, timeout=SLOWEST)
    if done.status != 0:
        raise EffectError(
            f"preparing {vm.name} failed with status {done.status}",
            details=tuple((done.stderr or done.stdout).strip().splitlines()[-5:]),
        )
    return done.stdout
