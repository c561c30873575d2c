"""Active patches and QEMU processes that come later: those of VMs that this program starts, or moves to this machine.

A process is told by /proc alone (its uuid, and that it was not there before), since libvirt may hold the domain for the
operation that makes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from vmkit.errors import EffectError, RefusedError, VmkitError
from vmkit.hotfix import history, manifest, undo
from vmkit.hotfix.operation import STARTING, changes_for, transact
from vmkit.hotfix.plans import Action
from vmkit.hotfix.survey import look
from vmkit.hotfix.targets.qemu import QemuGuest, QemuImage, binary_of, check_at_rest, is_qemu
from vmkit.hotfix.transaction import MAX_PAUSE, hook_from_environment
from vmkit.hotfix.verify import State
from vmkit.hypervisor.domain import Domain, DomainState
from vmkit.progress import Note, Reporter, silent
from vmkit.system.elf import Binary, read_binary
from vmkit.system.journal import journalled
from vmkit.system.process import ProcessId
from vmkit.system.procmem import Running, running

LOCK_SECONDS: Final = 60.0
PATIENCE_SECONDS: Final = 30.0
"""Longest time until the first write: no guest of these processes runs, so none is kept from its work."""
START: Final = "start"
"""In the journal, where others have what is done to a patch."""
POLL_SECONDS: Final = 0.05
"""Between looks for the process of a VM that arrives: QEMU takes longer to begin than that."""


class Newcomers:
    """Puts the active patches into processes before their guests run (vmkit.hypervisor.newcomers.Attendant)."""

    def wanted(self) -> bool:
        """Whether there is an active patch."""
        try:
            return bool(undo.active())
        except VmkitError:
            return True  # a record that cannot be read is not passed over: `start` says so

    def start(self, domain: Domain) -> None:
        """Start a domain paused, patch its process, let it run.

        Raises:
            EffectError: it could not be patched, and stays paused: nothing of it has run, and nothing is lost.
            VmkitError: it could not be started.
        """
        name, uuid, uri = domain.name, domain.uuid, domain.host.uri
        known = processes_of(uuid)
        facts = {"uri": uri, "action": START, "processes": [], "guests": [[name, uuid]]}
        with journalled("hotfix", name, STARTING, **facts) as entry:
            domain.start(paused=True)
            entry.keep = True
            try:
                with undo.one_at_a_time(LOCK_SECONDS):
                    patch_all(domain, known, "patched at start")
            except VmkitError as e:
                entry.keep = False
                raise EffectError(
                    f"{name} does not run, since it cannot be patched: {e.message}",
                    left="it is paused, and nothing of it has run",
                    hint=f"do without the patch: vmkit hotfix revert ID; then: vmkit resume {name}",
                ) from e
            domain.resume()
            entry.keep = False

    def patch(self, domain: Domain) -> None:
        """Patch the process of a domain whose guest stands.

        Raises:
            VmkitError: see `patch_all`; or another hotfix takes too long.
        """
        with undo.one_at_a_time(LOCK_SECONDS):
            patch_all(domain, frozenset(), "patched at start")

    @contextmanager
    def arriving(self, domain: Domain, reporter: Reporter = silent) -> Iterator[Callable[[], str]]:
        """Patch the process that a migration makes on this machine as soon as it is there, while the block runs.

        Gives what says why the guest must not go over; '' while nothing stands against it.
        """
        watch = _Arrival(domain, reporter)
        thread = threading.Thread(target=watch.run, name="vmkit-hotfix-arrival", daemon=True)
        thread.start()
        try:
            yield lambda: watch.trouble
        finally:
            watch.over.set()
            thread.join()


class _Arrival:
    """The side that looks for the new process."""

    def __init__(self, domain: Domain, reporter: Reporter) -> None:
        self.trouble = ""
        self.over = threading.Event()
        self._domain = domain
        self._reporter = reporter
        self._known = processes_of(domain.uuid)

    def run(self) -> None:
        try:
            while not processes_of(self._domain.uuid) - self._known:
                if self.over.wait(POLL_SECONDS):
                    if not processes_of(self._domain.uuid) - self._known:
                        return
                    break
            with undo.one_at_a_time(LOCK_SECONDS):
                done = patch_all(self._domain, self._known, "patched on arrival")
            if done:
                when = "before it ran there" if self._at_home() else "as it arrived"
                self._reporter(Note(f"{self._domain.name}: {', '.join(done)} put into its new process {when}"))
        except VmkitError as e:
            self.trouble = f"the new process of {self._domain.name} cannot be patched: {e.message}"
            self._reporter(Note(self.trouble, warning=True))

    def _at_home(self) -> bool:
        """Whether the guest still ran at its source after its new process had been patched."""
        try:
            return self._domain.state() is DomainState.RUNNING
        except VmkitError:
            return False


def patch_all(domain: Domain, known: frozenset[ProcessId], what: str, *, runs: bool = False) -> list[str]:
    """Put every active patch that is for its build into the processes of a domain that are not `known`.

    The caller holds the lock of hotfixes. Returns the ids of those that were put in. A guest that `runs` is paused
    meanwhile, for transaction.MAX_PAUSE at most until the first write.

    Raises:
        RefusedError: a process holds other bytes than it should.
        EffectError, IndeterminateError: see Transaction.run.
    """
    fresh = [r for r in running(is_qemu) if r.argument("-uuid").lower() == domain.uuid and r.id not in known]
    return [a.patch_id for process in fresh for a in undo.active() if _patch(domain, process, a, what, runs=runs)]


def _patch(domain: Domain, process: Running, remembered: undo.Remembered, what: str, *, runs: bool) -> bool:
    patch = manifest.parse(remembered.text)
    if runs:
        check_at_rest(process, domain)
    guest = QemuGuest(domain, runs=runs)  # while nothing of it runs, it is not paused either
    with QemuImage(process, guest, read_binary(process.exe_file)) as image:
        image.check_build()
        found = look(patch, image)
        if found.state is State.OTHER:
            raise RefusedError(
                f"{image.label} does not hold what patch {patch.id} expects: {found.detail}",
                hint=f"do without the patch: vmkit hotfix revert {patch.id}",
            )
        if found.state is not State.ORIGINAL:
            retire_if_upgraded(remembered, domain.host.uri)
            return False
        changes = changes_for(Action.APPLY, patch, [found])
        uri, hook = domain.host.uri, hook_from_environment()
        patience = MAX_PAUSE if runs else PATIENCE_SECONDS
        transact(Action.APPLY, patch, remembered.text, uri, changes, hook, patience, silent, what)
    return True


def unpatched(domain: Domain, binaries: dict[tuple[int, ...], Binary]) -> bool:
    """Whether `patch_all` has something to do, or to refuse, in the newest process of a domain.

    Looks only, and without the lock. `binaries` keeps the headers of executables from look to look.

    Raises:
        RefusedError: the process cannot be looked at.
    """
    active = undo.active()
    own = [r for r in running(is_qemu) if r.argument("-uuid").lower() == domain.uuid] if active else []
    if not own:
        return False
    process = max(own, key=lambda r: r.id.start)
    with QemuImage(process, QemuGuest(domain, runs=False), binary_of(process, binaries)) as image:
        return any(look(manifest.parse(a.text), image).state in (State.ORIGINAL, State.OTHER) for a in active)


def upgraded(remembered: undo.Remembered) -> bool:
    """Whether no file has the build of a patch any more, and no process carries it."""
    if any(s.process.alive() for s in remembered.saved) or not remembered.files:
        return False
    for path, build_id in remembered.files.items():
        with suppress(VmkitError):
            if read_binary(Path(path)).build_id == build_id:
                return False
    return True


def retire_if_upgraded(remembered: undo.Remembered, uri: str) -> None:
    """A patch that has come to that is active no more. The caller holds the lock of hotfixes."""
    if upgraded(remembered):
        undo.activate(remembered.patch_id, on=False)
        paths = ", ".join(sorted(remembered.files))
        history.note("retired", remembered.patch_id, uri, detail=f"{paths}: another build is installed now")


def older_of(uuid: str) -> frozenset[ProcessId]:
    """As `processes_of`, without the newest: where a migration makes a second one, the one that it leaves."""
    found = processes_of(uuid)
    return found - {max(found, key=lambda p: p.start)} if found else found


def processes_of(uuid: str) -> frozenset[ProcessId]:
    """The QEMU processes of this machine that are of the VM with this uuid."""
    return frozenset(r.id for r in running(is_qemu) if r.argument("-uuid").lower() == uuid)
