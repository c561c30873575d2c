"""Hotfixes of a host's running QEMU processes and of its kernel: make, check, apply, revert, status."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vmkit.errors import NotFoundError, RefusedError, VmkitError
from vmkit.hotfix import history, manifest, undo
from vmkit.hotfix.authoring import Authoring, verified
from vmkit.hotfix.history import Event
from vmkit.hotfix.kernel.judge import label
from vmkit.hotfix.kernel.operation import DONE, KernelTarget, stands
from vmkit.hotfix.kernel.operation import MAX_PAUSE as KERNEL_MAX_PAUSE
from vmkit.hotfix.manifest import Patch
from vmkit.hotfix.operation import changes_for, files_of, remember, settle, transact
from vmkit.hotfix.plans import Action, decide, plan_for, refuse_other_edition
from vmkit.hotfix.signing import is_signed
from vmkit.hotfix.survey import Finding, look, survey
from vmkit.hotfix.targets.process import ProcessImage
from vmkit.hotfix.targets.qemu import find_images
from vmkit.hotfix.transaction import MAX_PAUSE, Change, Hook, Outcome, hook_from_environment
from vmkit.hotfix.undo import Saved
from vmkit.hotfix.verify import State, resolve
from vmkit.hypervisor.host import Host
from vmkit.plan import Plan
from vmkit.progress import Finished, Reporter, Started, silent
from vmkit.system.clock import stopwatch
from vmkit.system.livepatch import LiveKernel
from vmkit.values import quoted


@dataclass(frozen=True, slots=True)
class WriteReport:
    """Bytes that were changed: address in the process, old and new in hexadecimal."""

    address: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class ProcessReport:
    """One QEMU process of the host.

    Attributes:
        guest, uuid: the VM.
        pid: the process; None where the kernel was patched, of which there is then a report too, without a uuid.
        build_id: of its executable; of the module of the kernel.
        pause_ms: how long its guest stood, from the call that paused it to the return of the one that resumed it; None
            if it was not paused by this operation.
        writes: what was changed in it; () if it was as wanted already.
    """

    guest: str
    uuid: str
    pid: int | None
    build_id: str
    pause_ms: float | None
    writes: tuple[WriteReport, ...]


@dataclass(frozen=True, slots=True)
class HotfixReport:
    """What apply or revert did.

    Attributes:
        id, title: of the patch.
        state: 'applied', 'already applied', 'reverted' or 'not applied' (revert found nothing to take back).
        pause_ms: the longest pause of a guest; 0 if none was paused.
        standing_ms: how long all of these guests stood at once.
        processes: every process of the host; for a patch of the kernel the kernel, and the guests that ran.
    """

    id: str
    title: str
    state: str
    pause_ms: float
    standing_ms: float
    processes: tuple[ProcessReport, ...]


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What apply would do. `state` is 'can be applied' or 'already applied'."""

    id: str
    title: str
    state: str
    plan: Plan


@dataclass(frozen=True, slots=True)
class StatusRow:
    """How one process, or the kernel, stands to one known patch, by its memory.

    Attributes:
        id, title: of the patch; '' if none is known for this row's VM.
        guest: the VM; 'the kernel RELEASE (MODULE)'.
        pid: its process; None if it cannot be told, and for the kernel.
        state: 'patched', 'not patched', 'other bytes', 'other build' or 'unknown'; of the kernel also 'gone' (a reboot,
            or somebody, has taken it out), 'in transition' and 'other edition'.
        detail: what was found, where it is neither patched nor unpatched.
    """

    id: str
    title: str
    guest: str
    pid: int | None
    state: str
    detail: str


class Hotfixes(Authoring):
    """What can be done with patches on one host.

    Args:
        connect: gives an open connection; called when the first one is needed. The caller closes it.
        hook: called before each step of a transaction (see transaction.STEPS), for tests.
        allow_unsigned: apply patches that no trusted key has signed, where a call does not say otherwise. Reverting
            needs no signature.
        kernel: the kernel of the host.
    """

    def __init__(
        self,
        connect: Callable[[], Host],
        *,
        hook: Hook | None = None,
        allow_unsigned: bool = False,
        kernel: LiveKernel | None = None,
    ) -> None:
        self._connect = connect
        self._kernel = kernel or LiveKernel()
        self._hook = hook
        self._allow_unsigned = allow_unsigned

    def plan(self, source: str | Path, action: Action = Action.APPLY, *, allow_unsigned: bool | None = None) -> Plan:
        """What `apply` or `revert` would do, after every check of theirs; nothing is paused or written.

        Raises: as they do.
        """
        patch, text = open_patch(source, action)
        self._trust(action, patch, text, allow_unsigned)
        if patch.livepatch:
            return KernelTarget(self._connect(), patch, self._kernel).plan(action)
        with ExitStack() as stack:
            found = survey(self._connect(), patch, stack)
            chosen = decide(action, patch, found)
            _check_code(action, patch, chosen)
            changes_for(action, patch, chosen)
            return plan_for(action, patch, found, chosen)

    def check(self, source: str | Path, *, allow_unsigned: bool | None = None) -> CheckReport:
        """Whether a patch (file or id) can be applied. Raises what `apply` would refuse with."""
        patch, _ = open_patch(source, Action.APPLY)
        plan = self.plan(source, allow_unsigned=allow_unsigned)
        return CheckReport(patch.id, patch.title, "can be applied" if plan.steps else "already applied", plan)

    def apply(
        self,
        source: str | Path,
        *,
        allow_unsigned: bool | None = None,
        max_pause: float | None = None,
        reporter: Reporter = silent,
    ) -> HotfixReport:
        """Patch every QEMU process of the host's running domains that is not patched yet; or the host's kernel.

        The guests of processes that are written to (for the kernel: all) are paused meanwhile, if they run; `max_pause`
        is for how many seconds at most, until the first byte is written (the kernel has changed over): after that
        nothing is written and they go on as they were. None: MAX_PAUSE, or that of kernel.operation.

        Raises:
            SpecError, RefusedError: nothing was touched. An unsigned patch is refused unless `allow_unsigned`; a
                signature that is wrong, or by a key that is not trusted or has expired, always.
            EffectError: a step failed; every byte is as before and every guest runs again, or it says what is not.
        """
        return self._carry_out(Action.APPLY, source, reporter, max_pause, allow_unsigned)

    def revert(
        self, source: str | Path, *, max_pause: float | None = None, reporter: Reporter = silent
    ) -> HotfixReport:
        """Put the bytes back that a patch (id or file) replaced, where it is applied. Raises as `apply` does."""
        return self._carry_out(Action.REVERT, source, reporter, max_pause)

    def history(self) -> list[Event]:
        """All that was done on this machine, oldest first.

        Raises:
            IndeterminateError: a line is not as it was written.
        """
        return list(history.read())

    def status(self) -> list[StatusRow]:
        """How every process of the host stands to every patch that is known on this machine."""
        rows: list[StatusRow] = []
        known = [open_patch(patch_id, Action.APPLY)[0] for patch_id in undo.known()]
        with ExitStack() as stack:
            images, lost = find_images(self._connect(), stack)
            for patch in known:
                if patch.livepatch:
                    rows.append(StatusRow(patch.id, patch.title, label(patch), None, *stands(patch, self._kernel)))
                    continue
                for image in images:
                    try:
                        state, detail = _words(look(patch, image))
                    except VmkitError as e:
                        state, detail = "unknown", e.message
                    rows.append(StatusRow(patch.id, patch.title, image.guest.name, image.process.pid, state, detail))
                rows += [StatusRow(patch.id, patch.title, x.guest.name, None, "unknown", x.error.message) for x in lost]
        return rows

    def watch(self, reporter: Reporter = silent) -> str:
        """Patch VMs that others start, until a signal comes; see watch.watch."""
        from vmkit.hotfix.watch import watch

        uri = self._connect().uri
        return watch(lambda: Host.connect(uri, events=True), reporter)

    def _trust(self, action: Action, patch: Patch, text: str, allow_unsigned: bool | None) -> None:
        """Raise RefusedError if this patch must not be applied for want of a signature."""
        allowed = self._allow_unsigned if allow_unsigned is None else allow_unsigned
        if action is Action.APPLY and not (allowed and not is_signed(text)):
            verified(text, f"patch {patch.id}")

    def _carry_out(
        self,
        action: Action,
        source: str | Path,
        reporter: Reporter,
        max_pause: float | None,
        allow_unsigned: bool | None = None,
    ) -> HotfixReport:
        settle(reporter)
        with undo.one_at_a_time(), ExitStack() as stack:
            reporter(Started("check"))
            clock = stopwatch()
            patch, text = open_patch(source, action)
            self._trust(action, patch, text, allow_unsigned)
            host = self._connect()
            if patch.livepatch:
                return self._change_kernel(action, patch, text, host, max_pause, reporter)
            found = survey(host, patch, stack)
            chosen = decide(action, patch, found)
            _check_code(action, patch, chosen)
            if action is Action.APPLY:
                _refuse_other_edition(patch)
            changes = changes_for(action, patch, chosen)
            reporter(Finished("check", clock(), f"{len(found.findings)} processes"))
            outcome = Outcome()
            if not changes:
                files = files_of(f.image for f in found.findings if f.state is State.REPLACED)
                remember(action, patch.id, (), files, reporter)
            else:
                hook = self._hook or hook_from_environment()
                outcome = transact(action, patch, text, host.uri, changes, hook, max_pause or MAX_PAUSE, reporter)
        done = DONE[action]
        pauses = outcome.pause_ms
        return HotfixReport(
            patch.id,
            patch.title,
            done[0] if changes else done[1],
            max(pauses.values(), default=0.0),
            outcome.standing_ms,
            tuple(_report(f, changes, pauses) for f in found.findings),
        )

    def _change_kernel(
        self, action: Action, patch: Patch, text: str, host: Host, max_pause: float | None, reporter: Reporter
    ) -> HotfixReport:
        if action is Action.APPLY:
            _refuse_other_edition(patch)
        hook = self._hook or hook_from_environment()
        some, facts, guests, outcome = KernelTarget(host, patch, self._kernel).carry_out(
            action, text, hook, max_pause or KERNEL_MAX_PAUSE, reporter
        )
        pauses, build_id = outcome.pause_ms, facts.build_id or ""
        old, new = ("as loaded", "livepatch") if action is Action.APPLY else ("livepatch", "as loaded")
        writes = tuple(WriteReport(name, old, new) for name in patch.functions) if some else ()
        return HotfixReport(
            patch.id,
            patch.title,
            DONE[action][not some],
            max(pauses.values(), default=0.0),
            outcome.standing_ms,
            (
                ProcessReport(label(patch), "", None, build_id, None, writes),
                *(ProcessReport(g.name, g.uuid, None, "", pauses.get(g.uuid), ()) for g in guests),
            ),
        )


def is_id(source: str | Path) -> bool:
    """Whether a patch is named by its id, and not by a file."""
    return isinstance(source, str) and "/" not in source and not source.endswith(".toml") and not Path(source).is_file()


def open_patch(source: str | Path, action: Action) -> tuple[Patch, str]:
    """The patch and its text, from a file or from the record of its id.

    What was applied is what has to be reverted, so for that the record goes before the file.
    """
    path = Path(source)
    if is_id(source):
        remembered = undo.recall(str(source))
        if remembered is None:
            raise NotFoundError(
                f"no patch {quoted(str(source))} is known here, and there is no such file",
                hint="vmkit hotfix status lists them",
            )
        return manifest.parse(remembered.text), remembered.text
    text = manifest.read(path)
    patch = manifest.parse(text)
    if action is Action.REVERT and (remembered := undo.recall(patch.id)):
        return manifest.parse(remembered.text), remembered.text
    return patch, text


def _refuse_other_edition(patch: Patch) -> None:
    remembered = undo.recall(patch.id)
    if remembered is None or (recorded := manifest.parse(remembered.text)) == patch:
        return
    if recorded.livepatch and LiveKernel().state(recorded.livepatch.name).enabled:
        refuse_other_edition(patch, recorded, [label(recorded)])
    carriers = [f"the QEMU of {s.guest} (process {s.process.pid})" for s in remembered.saved if _carries(s)]
    refuse_other_edition(patch, recorded, carriers)


def _carries(saved: Saved) -> bool:
    try:
        with ProcessImage(saved.process, saved.guest, saved.room) as image:
            return any(image.read(w.address, len(w.new)) == w.new for w in saved.writes)
    except RefusedError:
        return False


def _check_code(action: Action, patch: Patch, chosen: Iterable[Finding]) -> None:
    """Whether the patch is sound code, for each file that runs. What is applied already may be reverted in any case."""
    from vmkit.hotfix.codemap import read_code
    from vmkit.hotfix.soundness import check_code

    binaries = {id(f.image.binary): f.image for f in chosen if f.image.binary.machine == "X86_64"}
    for image in binaries.values() if action is Action.APPLY else ():
        sites = resolve(patch, image.binary, 0, image.label)
        check_code(patch, sites, read_code(image.binary), image.label)


def _report(finding: Finding, changes: list[Change], pauses: dict[str, float]) -> ProcessReport:
    image = finding.image
    writes = next((c.writes for c in changes if c.image is image), ())
    return ProcessReport(
        image.guest.name,
        image.guest.uuid,
        image.process.pid,
        image.binary.build_id,
        pauses.get(image.guest.uuid),
        tuple(WriteReport(f"{w.address:#x}", w.old.hex(" "), w.new.hex(" ")) for w in writes),
    )


def _words(finding: Finding) -> tuple[str, str]:
    match finding.state:
        case State.ORIGINAL:
            return "not patched", ""
        case State.REPLACED:
            return "patched", ""
        case State.OTHER:
            return "other bytes", finding.detail
    return "other build", finding.detail
