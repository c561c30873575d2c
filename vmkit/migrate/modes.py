"""The techniques of migration, and which of them may be used where: pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmkit.errors import SpecError, UnsupportedError
from vmkit.migrate.facts import GuestFacts, HostFacts
from vmkit.migrate.traps import show_version, sprung
from vmkit.migrate.wish import PLAIN, Wish


class Mode(enum.Enum):
    """How the memory goes across, as the user names it."""

    AUTO = "auto"
    PRE_COPY = "pre-copy"
    STOP_COPY = "stop-copy"
    POST_COPY = "post-copy"
    HYBRID = "hybrid"


WHAT_IT_IS = {
    Mode.AUTO: "pre-copy, ended by a short stop within the allowed downtime, by post-copy where that is safe, or early",
    Mode.PRE_COPY: "the guest runs while its memory is sent; it stands still for the last part only",
    Mode.STOP_COPY: "the guest stands still while all of its memory is sent, once",
    Mode.POST_COPY: "the guest goes on at the target at once, and its memory follows",
    Mode.HYBRID: "one pass of pre-copy, then a short stop if the rest fits into the allowed downtime, else post-copy",
}


@dataclass(frozen=True, slots=True)
class Ways:
    """What the controller may do on the way.

    Attributes:
        mode: what was asked for; AUTO stays AUTO here.
        post_copy: whether it may switch to post-copy.
        why: why it may, or may not.
    """

    mode: Mode
    post_copy: bool
    why: str


def ways(mode: Mode, wish: Wish, guest: GuestFacts, source: HostFacts, target: HostFacts) -> Ways:
    """Which techniques are open. What the user names is left to preflight to refuse; `auto` takes no risk.

    Post-copy has a price: while it runs, neither host has all of the memory, and if the network or a host fails then,
    the guest stands still until the migration is taken up again, or is lost. So `auto` uses it only where a broken one
    can be taken up again.
    """
    match mode:
        case Mode.POST_COPY | Mode.HYBRID:
            return Ways(mode, True, "asked for")
        case Mode.PRE_COPY | Mode.STOP_COPY:
            return Ways(mode, False, "not asked for")
    if source.driver != "QEMU":
        return Ways(mode, False, f"the driver is {source.driver}")
    if guest.paused:
        return Ways(mode, False, "the guest is paused, so nothing changes on the way")
    if traps := sprung(guest, source, target, Wish(post_copy=True, parallel=wish.parallel)):
        post = [t for t in traps if t.post_copy]
        if post:
            return Ways(mode, False, post[0].harm)
    if min(source.libvirt, target.libvirt) < (8, 5, 0):
        old = show_version(min(source.libvirt, target.libvirt))
        return Ways(mode, False, f"libvirt {old} cannot take up a post-copy that broke (8.5 can)")
    if target.userfaultfd is not True:
        return Ways(mode, False, "it is not known that the target has userfaultfd, which post-copy needs")
    return Ways(mode, True, "a broken one can be taken up again, and the target has userfaultfd")


def check_wish(mode: Mode, wish: Wish, driver: str) -> None:
    """Raise if the options do not go together, whatever the hosts.

    Raises:
        SpecError: one option contradicts another.
        UnsupportedError: the driver has pre-copy only.
    """
    if wish.compression not in ("", "xbzrle", "zstd", "zlib"):
        raise SpecError(f"'{wish.compression}' is not known", path="--compress", hint="one of: xbzrle, zstd, zlib")
    if wish.compression in ("zstd", "zlib") and not wish.parallel:
        raise SpecError(
            f"{wish.compression} compresses parallel connections only", path="--compress", hint="add --parallel 2"
        )
    if wish.compression == "xbzrle" and wish.parallel:
        raise SpecError(
            "xbzrle does not go with --parallel", path="--compress", hint="use zstd, or leave --parallel out"
        )
    if wish.parallel and not 2 <= wish.parallel <= 255:
        raise SpecError("has to be between 2 and 255", path="--parallel", hint="as many as there are CPUs to spare")
    if wish.zero_copy and not wish.parallel:
        raise SpecError("only of parallel connections can it be", path="--zero-copy", hint="add --parallel 2")
    if wish.zero_copy and wish.compression:
        raise SpecError(
            f"what is packed ({wish.compression}) is copied for that", path="--zero-copy", hint="leave --compress out"
        )
    if mode is Mode.STOP_COPY and wish.auto_converge:
        raise SpecError("a guest that stands still has nothing to slow down", path="--auto-converge")
    plain = mode in (Mode.AUTO, Mode.PRE_COPY) and wish == PLAIN
    if driver != "QEMU" and not plain:
        raise UnsupportedError(f"the driver {driver} has pre-copy only", hint="leave --mode and its options out")
