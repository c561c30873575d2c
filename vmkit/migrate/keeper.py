"""The process that holds libvirt's migration call where post-copy may come of it.

libvirt has the client tell the target to go on after the source has switched over. A client that dies in that moment
leaves a VM that no host runs: the target removes its copy, and the source does not take its own back (seen with
libvirt 11.3). So the call is held by this process, which no signal of a terminal reaches. If the vmkit that steers dies
before the switch, it ends too, and both libvirts undo the migration; after the switch it carries it to its end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vmkit import errors
from vmkit.errors import EffectError, VmkitError
from vmkit.system.companion import Companion
from vmkit.system.fuse import folder_name
from vmkit.system.tunnel import Road, carried

if TYPE_CHECKING:
    from vmkit.hypervisor.migration import Options

MODULE = "vmkit.migrate.keeper"


class Keeper:
    """The steering side of it.

    Args:
        order: URIs, uuid and arguments of `migrate_live`, as `order` makes them.
    """

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._companion: Companion | None = None
        self._answered = threading.Event()
        self._refusal: VmkitError | None = None

    def migrate(self) -> None:
        """Carry the migration out; returns when it is over.

        Raises:
            VmkitError: as `migrate_live`; EffectError if the process was killed.
        """
        with Companion(MODULE) as companion:
            self._companion = companion
            companion.tell(self._order)
            try:
                while (answer := companion.answer()) is not None:
                    if "switched" in answer:
                        self._refusal = None if answer["switched"] else _error(answer)
                        self._answered.set()
                    elif answer.get("done"):
                        return
                    else:
                        raise _error(answer)
            finally:
                self._refusal = self._refusal or EffectError("the migration has ended")
                self._answered.set()
        raise EffectError("the process that held the migration was killed")

    def switch(self) -> None:
        """Have it go over to post-copy.

        Raises:
            VmkitError: it cannot (yet, or any more).
        """
        self._answered.clear()
        self._refusal = None
        if self._companion is None:
            raise EffectError("it has not begun")
        self._companion.tell("switch")
        self._answered.wait(60.0)
        if self._refusal is not None:
            raise self._refusal


def order(
    source: str,
    target: str,
    uuid: str,
    arguments: dict[str, Any],
    options: Options,
    road: Road | None = None,
    fuse: str = "",
) -> dict[str, Any]:
    """What the process has to be told; `arguments` are those of `migrate_live`, `road` is a tunnel to open.

    `fuse` is a folder for its connections.
    """
    tunnel = None if road is None else road.plain()
    call = {"call": arguments, "options": asdict(options), "road": tunnel, "fuse": fuse or folder_name()}
    return {"source": source, "target": target, "uuid": uuid, **call}


def _error(answer: dict[str, Any]) -> VmkitError:
    kind = getattr(errors, str(answer.get("kind")), None)
    if not (isinstance(kind, type) and issubclass(kind, VmkitError)):
        kind = EffectError
    return kind(str(answer.get("message")), hint=answer.get("hint"), details=tuple(answer.get("details") or ()))


# -- the process itself


def serve() -> None:
    """Hold one migration. Reads the order and the wish to switch from standard input, answers on standard output."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the steering process decides, and an aborted job ends this one as well
    told = json.loads(sys.stdin.readline())
    switched = threading.Event()
    lock = threading.Lock()

    def say(**value: Any) -> None:
        with lock:
            try:
                sys.stdout.write(json.dumps(value) + "\n")
                sys.stdout.flush()
            except OSError:
                return  # nobody listens any more

    def obey(switch: Callable[[], None]) -> None:
        for _ in sys.stdin:
            try:
                with lock:  # if the end of input is seen next, it is known that it was switched
                    switch()
                    switched.set()
            except VmkitError as e:
                say(switched=False, **_plain(e))
            else:
                say(switched=True)
        if not switched.is_set():
            os._exit(1)  # closes both connections, whereupon both libvirts undo it

    try:
        _hold(told, obey)
    except VmkitError as e:
        say(**_plain(e))
    else:
        say(done=True)
    os._exit(0)


def _hold(told: dict[str, Any], obey: Callable[[Callable[[], None]], None]) -> None:
    from vmkit.hypervisor.migration import Options, migrate_live, start_postcopy
    from vmkit.migrate.line import connected

    road = Road.parse(told["road"]) if told["road"] else None
    with connected(told["source"], told["target"], told["fuse"]) as (source, target):
        domain = source.domain(told["uuid"])
        threading.Thread(target=obey, args=(lambda: start_postcopy(domain),), daemon=True).start()
        with carried(road):
            migrate_live(domain, target, options=Options(**told["options"]), **told["call"])


def _plain(error: VmkitError) -> dict[str, Any]:
    return {"kind": type(error).__name__, "message": error.message, "hint": error.hint, "details": [*error.details]}


if __name__ == "__main__":
    serve()
