"""Writing to several images as one transaction: pause, hold still, compare, write, read back, let go, resume.

It knows nothing of processes or libvirt. Whatever fails on the way, the old bytes are put back while everything still
stands, and the guests that it paused are resumed. A kill cannot be answered here: vmkit.hotfix.recovery does that.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Final, Protocol

from vmkit.errors import CancelledError, DeadlineError, EffectError, VmkitError
from vmkit.hotfix.verify import Page, Span, Write, spans_of
from vmkit.system.clock import Deadline
from vmkit.system.interrupts import deferred
from vmkit.system.priority import hurried

STEPS: Final = (
    *("record", "journal", "room", "pause", "stop", "compare", "write"),
    *("read-back", "let-go", "resume", "note-written", "tidy", "finish"),
)
"""Names of the steps, in order. The hook is called before each, for some of them several times."""

KILL_VARIABLE: Final = "VMKIT_TEST_HOTFIX_KILL"
"""For tests only: `write:2` has the process kill itself (SIGKILL) before the second write."""

RESUME_TRIES: Final = 3
CALLS_AT_ONCE: Final = 8
"""libvirt serves five calls of a connection at a time (max_client_requests in libvirtd.conf); more would only wait."""
MAX_PAUSE: Final = 2.0
"""Seconds that guests may stand before the first write, where nothing else is said."""

Hook = Callable[[str], None]


class Image(Protocol):
    """A running copy of the code that is patched."""

    label: str

    @property
    def gone(self) -> bool:
        """Whether it has ended, and there is nothing to put right."""

    def read(self, address: int, length: int) -> bytes:
        """Bytes of its memory."""

    def write(self, address: int, data: bytes) -> None:
        """Change its memory."""

    def prepare(self, spans: Sequence[Span]) -> None:
        """Do what can be done for `still` before the guests stand."""

    def halt(self) -> None:
        """Begin to hold it, for `still`, and wait for nothing."""

    def let_go(self) -> None:
        """Take `halt` back; nothing to do behind `still`."""

    def still(self, spans: Sequence[Span], seconds: float) -> AbstractContextManager[object]:
        """Hold it, with nothing that executes in the spans or returns to them; give up after so many seconds."""


class Guest(Protocol):
    """A guest that runs on one of the images."""

    name: str
    uuid: str

    def expect_running(self) -> None:
        """Raise ConflictError if it does not run any more: then its pause is somebody else's."""

    def pause(self) -> None:
        """Let it stand."""

    def resume(self) -> None:
        """Let it run, if it stands because of a pause."""


@dataclass(frozen=True, slots=True)
class Change:
    """All that changes in one image: the writes, the whole pages before and after, and what else has to be clear."""

    image: Image
    writes: tuple[Write, ...]
    pages: tuple[Page, ...]
    clear: tuple[Span, ...] = ()


@dataclass(slots=True)
class Outcome:
    """What a transaction left.

    Attributes:
        step: the last step that was begun.
        verified: all was written, read back and let go.
        pause_ms: for each guest (uuid) that was paused, from the call that paused it to the return of the one that
            resumed it.
        standing_ms: how long all of them stood at once: from the end of the last pause to the first resume.
        paused: guests that could not be resumed.
        unclean: images that may hold new bytes although the transaction failed.
    """

    step: str = ""
    verified: bool = False
    pause_ms: dict[str, float] = field(default_factory=dict)
    standing_ms: float = 0.0
    paused: list[str] = field(default_factory=list)
    unclean: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing is left for a later command to do."""
        return not self.paused and not self.unclean


def hook_from_environment() -> Hook:
    """The hook that KILL_VARIABLE asks for; one that does nothing if it is not set."""
    wanted, _, number = os.environ.get(KILL_VARIABLE, "").partition(":")
    left = int(number) if number.isdigit() else 1

    def hook(step: str) -> None:
        nonlocal left
        if step == wanted:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


class Transaction:
    """One run. `outcome` says how it stands, also after an error.

    Args:
        title: what it is, for messages: 'hotfix edu-id'.
        changes: what is written where.
        guests: those that run now and are to be paused meanwhile.
        hook: called with the name of each step before it; may raise. The seam for fault injection.
        max_pause: seconds from the first pause after which nothing is written any more, and all go on as before.
    """

    def __init__(
        self,
        title: str,
        changes: Sequence[Change],
        guests: Sequence[Guest],
        *,
        hook: Hook,
        max_pause: float = MAX_PAUSE,
    ) -> None:
        self.outcome = Outcome()
        self._title = title
        self._changes = changes
        self._spans = [spans_of(change.writes, change.clear) for change in changes]
        self._guests = guests
        self._hook = hook
        self._max_pause = max_pause
        self._begun: dict[str, float] = {}
        self._written: list[tuple[Image, Write]] = []

    def run(self) -> None:
        """Carry it out. Ctrl-C is heeded until the first byte is written, and held back from then on.

        Raises:
            CancelledError: stopped by Ctrl-C or a signal; nothing was written, every guest runs again.
            EffectError: a step failed; the message names it, `left` says what is left. `outcome.clean` tells whether
                the old bytes are back and all guests run.
        """
        with deferred() as interrupted:
            self._run(interrupted)

    def _run(self, interrupted: Callable[[], str | None]) -> None:
        failure: BaseException | None = None
        workers = min(CALLS_AT_ONCE, max(1, len(self._guests)))
        with hurried(), ThreadPoolExecutor(max_workers=workers) as pool:  # guests stand while this machine is busy
            try:
                for change, spans in zip(self._changes, self._spans, strict=True):
                    change.image.prepare(spans)
                self._pause_all(pool)
                stood = time.monotonic()
                self._change_all(interrupted)
                self.outcome.verified = True
            except BaseException as e:  # kept, and raised below when the guests run again
                failure = e
                # Only where putting back was itself cut short is anything left here.
                self.outcome.unclean += [f"{i.label} at {w.address:#x}" for i, w in self._written if not i.gone]
            failed_at = self.outcome.step
            if failure is None and self._guests:
                self.outcome.standing_ms = (time.monotonic() - stood) * 1000
            self._resume_all(pool)
        wished = isinstance(failure, CancelledError) or not isinstance(failure, Exception)
        if failure is not None and wished and self.outcome.clean:
            raise failure
        if failure is not None or self.outcome.paused:
            raise self._error(failed_at if failure else "resume", failure) from failure

    def _enter(self, step: str) -> None:
        self.outcome.step = step
        self._hook(step)

    def _pause_all(self, pool: ThreadPoolExecutor) -> None:
        """Look at all before the first is paused: what is asked in between would lengthen the pause of others."""

        def look(guest: Guest) -> None:
            guest.expect_running()

        def pause(guest: Guest) -> None:
            self._enter("pause")
            self._begun[guest.uuid] = time.monotonic()
            guest.pause()

        self.outcome.step = "pause"
        _in_parallel(pool, look, self._guests)
        _in_parallel(pool, pause, self._guests)

    def _change_all(self, interrupted: Callable[[], str | None]) -> None:
        """Hold every image before the first is compared, and compare every image before the first byte is written."""
        budget = Deadline(self._max_pause - (time.monotonic() - min(self._begun.values(), default=time.monotonic())))
        with ExitStack() as held:
            for change in self._changes:
                self._enter("stop")
                held.callback(change.image.let_go)
                change.image.halt()  # each takes its time to stand, all of them at once
            for change, spans in zip(self._changes, self._spans, strict=True):
                held.enter_context(change.image.still(spans, budget.left))
            for change in self._changes:
                self._enter("compare")
                _expect(change.image, ((p.address, p.before) for p in change.pages), "changed since it was checked")
            if budget.passed:
                raise DeadlineError(f"the guests stood for {self._max_pause:g} s and nothing was written yet")
            if signal_name := interrupted():
                raise CancelledError(f"{self._title}: stopped by {signal_name}; nothing was written")
            try:
                self._write_all()
            except BaseException:
                self._put_back()
                raise

    def _write_all(self) -> None:
        for change in self._changes:
            for write in change.writes:
                self._enter("write")
                self._written.append((change.image, write))
                change.image.write(write.address, write.new)
        for change in self._changes:
            self._enter("read-back")
            _expect(change.image, ((p.address, p.after) for p in change.pages), "is not what was written")
        self._enter("let-go")

    def _put_back(self) -> None:
        while self._written:
            image, write = self._written[-1]
            try:
                image.write(write.address, write.old)
                _expect(image, [(write.address, write.old)], "is not what was put back")
            except VmkitError as e:
                if not image.gone:
                    self.outcome.unclean.append(f"{image.label} at {write.address:#x}: {e.message}")
            self._written.pop()

    def _resume_all(self, pool: ThreadPoolExecutor) -> None:
        """Resume every guest whose pause was begun, even where that failed: libvirt may have carried it out."""

        def resume(guest: Guest) -> None:
            for attempt in range(1, RESUME_TRIES + 1):
                try:
                    self._enter("resume")
                    guest.resume()
                    break
                except Exception as e:  # any failure means: try again, then say that it stands
                    if attempt == RESUME_TRIES:
                        self.outcome.paused.append(f"{guest.name}: {getattr(e, 'message', e)}")
                        return
                    time.sleep(0.05 * attempt)
            self.outcome.pause_ms[guest.uuid] = (time.monotonic() - self._begun[guest.uuid]) * 1000

        _in_parallel(pool, resume, [g for g in self._guests if g.uuid in self._begun])

    def _error(self, step: str, failure: BaseException | None) -> EffectError:
        outcome = self.outcome
        reason = "" if failure is None else f": {getattr(failure, 'message', None) or repr(failure)}"
        if outcome.unclean:
            left = f"{len(outcome.unclean)} places could not be put back"
        elif failure is not None:
            left = "every byte is as it was before"
        else:
            left = "the bytes are written and verified"
        left += f"; still paused: {len(outcome.paused)} guests" if outcome.paused else " and every guest runs again"
        return EffectError(
            f"{self._title}: the step '{step}' failed{reason}",
            left=left,
            hint=getattr(failure, "hint", None) if outcome.clean else "the next vmkit command tries again: vmkit list",
            details=(*outcome.unclean, *outcome.paused),
        )


def _in_parallel(pool: ThreadPoolExecutor, call: Callable[[Guest], None], guests: Sequence[Guest]) -> None:
    """Call for all guests at once, wait for all, then raise the first error."""
    futures = [pool.submit(call, guest) for guest in guests]
    wait(futures)
    for future in futures:
        future.result()


def _expect(image: Image, wanted: Iterable[tuple[int, bytes]], complaint: str) -> None:
    for address, data in wanted:
        found = image.read(address, len(data))
        if found != data:
            at = next(i for i, (a, b) in enumerate(zip(found, data, strict=True)) if a != b)
            raise EffectError(
                f"{image.label}: {address + at:#x} {complaint}: {found[at : at + 8].hex(' ')}, "
                f"not {data[at : at + 8].hex(' ')}"
            )
