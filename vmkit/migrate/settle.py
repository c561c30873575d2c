"""Looking at both hosts after a migration, and bringing them in order: the acting half of outcome.py."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from vmkit.errors import UnreachableError, VmkitError
from vmkit.migrate.outcome import Action, Intent, Place, Seen, Verdict, classify, decide
from vmkit.progress import Note, Reporter
from vmkit.system.clock import Deadline

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain
    from vmkit.hypervisor.host import Host
    from vmkit.hypervisor.migration import Sighting

T = TypeVar("T")

CONNECT_S: Final = 15.0
VERIFY_S: Final = 30.0
"""How long both hosts may take to say what became of a move, seconds."""
_LOOK_AGAIN_S: Final = 0.3


class Reach:
    """A host that may have stopped answering: connects when needed, and again after a failure.

    Attributes:
        uri: the host's URI.
        trouble: why it did not answer the last time; '' if it did.
    """

    def __init__(self, uri: str, host: Host | None = None, *, connect: float = CONNECT_S) -> None:
        """Make it; nothing is connected yet.

        Args:
            uri: the host's URI.
            host: an open connection of somebody else's, to use as long as it works.
            connect: seconds that connecting may take.
        """
        self.uri = uri
        self._connect_s = connect
        self.trouble = ""
        self._host = host
        self._own = host is None

    def close(self) -> None:
        """Close the connection, if it is our own."""
        if self._host is not None and self._own:
            self._host.close()
        self._host = None

    def sight(self, uuid: str) -> tuple[Seen, Sighting | None]:
        """What the host says of the VM now."""
        from vmkit.hypervisor.migration import sight_uuid

        for old in (self._host is not None, False):  # a connection that broke is made anew, once
            try:
                seen = sight_uuid(self._connected(), uuid)
            except VmkitError as e:
                self.trouble = e.message
                self._drop()
                if old:
                    continue
                break
            self.trouble = ""
            return classify(seen), seen
        return Seen.UNREACHABLE, None

    def domain(self, uuid: str) -> Domain | None:
        """The domain; None if there is none.

        Raises:
            UnreachableError: the host does not answer.
        """
        from vmkit.hypervisor.migration import find

        return find(self._connected(), uuid=uuid)

    def host(self) -> Host:
        """The open connection.

        Raises:
            UnreachableError: the host does not answer.
        """
        return self._connected()

    def adopt(self, xml: str) -> Domain:
        """Define the domain there, from libvirt's own XML."""
        from vmkit.hypervisor.migration import adopt

        return adopt(self._connected(), xml)

    def _connected(self) -> Host:
        from vmkit.hypervisor.host import Host

        if self._host is None or not self._host.alive:
            self._drop()
            self._host = bounded(lambda: Host.connect(self.uri, events=True), self._connect_s, self.uri)
            self._own = True
        return self._host

    def _drop(self) -> None:
        if self._host is not None and self._own:
            self._host.close()
        self._host = None
        self._own = True


def bounded(call: Callable[[], T], seconds: float, uri: str) -> T:
    """Call something that has no time limit of its own (connecting to a host that is down, say).

    Raises:
        UnreachableError: it did not return in time. Its thread ends when it does.
    """
    box: list[T | BaseException] = []

    def work() -> None:
        try:
            box.append(call())
        except BaseException as e:
            box.append(e)

    thread = threading.Thread(target=work, daemon=True, name="vmkit-connect")
    thread.start()
    thread.join(seconds)
    if not box:
        raise UnreachableError(
            f"{uri} does not answer within {seconds:g} s", hint="see that the host is up and its libvirtd runs"
        )
    if isinstance(box[0], BaseException):
        raise box[0]
    return box[0]


@dataclass(frozen=True, slots=True)
class Settled:
    """How both hosts stand now.

    Attributes:
        verdict: of the last look; no actions are left in it unless one failed.
        source, target: what the hosts said.
        running: copies of the VM whose vCPUs are, or may be, running (a paused one is a copy too).
        done: what was done, in words.
        trouble: what could not be done, or why a host could not be asked.
    """

    verdict: Verdict
    source: Seen
    target: Seen
    running: int
    done: tuple[str, ...]
    trouble: tuple[str, ...]


def settle(
    source: Reach,
    target: Reach,
    uuid: str,
    intent: Intent,
    *,
    patience: float,
    silence: float,
    reporter: Reporter,
) -> Settled:
    """Look at both hosts, do what is certain, and look again until nothing is left to do.

    Args:
        source: where it was.
        target: where it was to go.
        uuid: of the VM.
        intent: what was there before.
        patience: seconds to wait for libvirt to finish what it is at.
        silence: seconds to wait for a host to answer again, or for a state that says nothing certain to change.
        reporter: hears what is done.
    """
    limits = {Place.WAIT: Deadline(patience), Place.UNKNOWN: Deadline(silence)}
    done: list[str] = []
    trouble: list[str] = []
    while True:
        at_source, at_target = source.sight(uuid)[0], target.sight(uuid)[0]
        verdict = decide(at_source, at_target, intent)
        limit = limits.get(verdict.place)
        acted = False
        if limit is None and len(trouble) < 3:
            for action in verdict.actions:
                try:
                    if perform(action, source, target, uuid):
                        acted = True
                        done.append(action.value)
                        reporter(Note(action.value))
                except VmkitError as e:
                    acted = True
                    trouble.append(f"{action.value}: {e.message}")
                    threading.Event().wait(_LOOK_AGAIN_S)
        if limit is not None and not limit.passed:
            threading.Event().wait(min(_LOOK_AGAIN_S, limit.left))
        elif not acted:
            break
    alive = (Seen.RUNNING, Seen.PAUSED, Seen.CRASHED, Seen.PULLING)
    running = sum(s in alive for s in (at_source, at_target))
    silent_hosts = [t if (t := r.trouble).startswith(r.uri) else f"{r.uri}: {t}" for r in (source, target) if r.trouble]
    return Settled(verdict, at_source, at_target, running, tuple(done), (*trouble, *silent_hosts))


def perform(action: Action, source: Reach, target: Reach, uuid: str) -> bool:
    """Carry one action out, after looking once more. False if there was nothing (left) to do."""
    from vmkit.hypervisor.migration import forget, sight

    here, there = source.domain(uuid), target.domain(uuid)
    mine = None if here is None else sight(here)
    theirs = None if there is None else sight(there)
    match action:
        case Action.REMOVE_INCOMING if there is not None and classify(theirs) is Seen.HALTED:
            there.destroy()
        case Action.FORGET_TARGET if there is not None and classify(theirs) is Seen.DEFINED:
            forget(there)
        case Action.RESUME_SOURCE if here is not None and classify(mine) is Seen.HALTED and theirs is None:
            here.resume()
        case Action.STOP_SOURCE if here is not None and classify(mine) in (Seen.HALTED, Seen.HANDED):
            # of a guest that post-copy handed over: only once the target has all of its memory, and says so
            if classify(theirs) not in (Seen.RUNNING, Seen.PAUSED, Seen.CRASHED):
                return False
            here.destroy()
        case Action.FORGET_SOURCE if here is not None and mine is not None and mine.persistent:
            forget(here)
        case Action.DEFINE_TARGET if there is not None and theirs is not None and not theirs.persistent:
            # the definition at the source may differ from what runs: it is what the next start is to use
            original = here if here is not None and mine is not None and mine.persistent else there
            target.adopt(original.xml(inactive=True, secure=True))
        case _:
            return False
    return True
