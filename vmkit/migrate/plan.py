"""The plan of a migration: a pure function of the request and the facts."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

from vmkit.errors import SpecError
from vmkit.migrate.facts import GuestFacts, Presence
from vmkit.migrate.modes import WHAT_IT_IS, Mode
from vmkit.migrate.outlook import Outlook
from vmkit.migrate.predict import Prediction, describe, expected
from vmkit.migrate.preflight import Case, Preflight
from vmkit.migrate.storage import Kind, copies
from vmkit.migrate.transport import PLAIN as STRAIGHT
from vmkit.migrate.transport import Carriage, carriage_of
from vmkit.migrate.wish import PLAIN, Wish
from vmkit.plan import Choice, Plan, Step
from vmkit.values import Bytes, quoted, show_duration

_COLD: Final = Choice("technique", "cold", "it is shut off: its disks are copied as they lie, its definition moves")


class How(TypedDict, total=False):
    """How a VM is to be moved; everything can be left out. Of one that is shut off nothing of it applies.

    Attributes:
        deadline: seconds from the start of the transfer until it is given up; 120 without it.
        bandwidth: bytes a second, rounded up to whole MiB; None for no limit. QEMU lifts it while the guest stands
            still.
        max_downtime: seconds that the guest may stand still at the end; None for its QEMU's setting (300 ms).
        probe: 'ADDRESS' or 'ADDRESS:PORT' where the guest echoes UDP, to measure the gap that its users see.
        mode: 'auto', 'pre-copy', 'stop-copy', 'post-copy' or 'hybrid'.
        auto_converge: QEMU may slow the guest down if it dirties memory faster than it is sent.
        compression: 'xbzrle', or with `parallel` 'zstd' or 'zlib'.
        parallel: connections to send over; 2 to 255.
        zero_copy: with `parallel`, the kernel sends the guest's pages from where they are.
        recording: file to write what the transfer went through to, for `Migrations.replay`.
        report: file to draw the same to, as .html, .svg or .png.
        transport: 'auto' (which is 'direct'), 'direct', 'tls' or 'ssh'.
        congestion: with `ssh`, the TCP congestion control of what this machine sends: 'bbr', 'cubic'.
    """

    deadline: float
    bandwidth: int | None
    max_downtime: float | None
    probe: str | None
    mode: str
    auto_converge: bool
    compression: str | None
    parallel: int | None
    zero_copy: bool
    recording: Path | None
    report: Path | None
    transport: str
    congestion: str | None


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for.

    Attributes:
        deadline: seconds from the start of the transfer until it is given up.
        bandwidth: bytes a second; None for no limit.
        max_downtime: seconds that the guest may stand still at the end; None for QEMU's own setting.
        mode: technique, or AUTO.
        wish: compression, connections, auto-converge; post_copy in it is decided from `mode` and the facts.
        recording: file to write what the transfer went through to; None for none.
        probe: 'ADDRESS' or 'ADDRESS:PORT' of the guest's UDP echo; None for no probing.
        carriage: how the memory gets from host to host.
        report: file to draw that to; None for none.
    """

    vm: str
    to: str
    deadline: float = 120.0
    bandwidth: int | None = None
    max_downtime: float | None = None
    probe: str | None = None
    mode: Mode = Mode.AUTO
    wish: Wish = PLAIN
    recording: Path | None = None
    carriage: Carriage = STRAIGHT
    report: Path | None = None

    def check(self) -> None:
        """Raise SpecError if a value cannot be meant."""
        if not 0 < self.deadline <= 7 * 86400:
            raise SpecError("has to be between 1 ms and a week", path="--deadline", hint="write it like 120s or 5m")
        if self.bandwidth is not None and self.bandwidth <= 0:
            raise SpecError("has to be more than 0 bytes a second", path="--bandwidth", hint="write it like 100M")
        if self.max_downtime is not None and not 0.001 <= self.max_downtime <= 2000:
            # QEMU's own limit: MAX_MIGRATE_DOWNTIME_SECONDS in migration/options.c
            raise SpecError("has to be between 1 ms and 2000 s", path="--max-downtime", hint="write it like 300ms")


def request_of(name: str, to: str, how: How) -> Request:
    """The request that keyword arguments mean.

    Raises:
        SpecError: one of them cannot be meant.
    """
    from vmkit.migrate.paint import check_picture
    from vmkit.migrate.probe import parse_target

    modes = {m.value: m for m in Mode}
    mode = modes.get(how.get("mode", "auto"))
    if mode is None:
        raise SpecError(f"{quoted(how['mode'])} is not a mode", path="--mode", hint=f"one of: {', '.join(modes)}")
    recording = how.get("recording")
    request = Request(
        name,
        to,
        how.get("deadline", 120.0),
        how.get("bandwidth"),
        how.get("max_downtime"),
        how.get("probe"),
        mode,
        Wish(
            False,
            how.get("auto_converge", False),
            how.get("compression") or "",
            how.get("parallel") or 0,
            how.get("zero_copy", False),
        ),
        None if recording is None else Path(recording),
        carriage_of(how.get("transport"), how.get("congestion")),
        how.get("report"),
    )
    request.check()
    if request.report is not None:
        check_picture(request.report)
    if request.probe is not None:
        parse_target(request.probe)
    return request


def check_off(name: str, how: How) -> None:
    """Raise SpecError if something is wished of the move of a VM that is shut off: it is all about its memory."""
    given = [key for key, value in how.items() if value and value != "auto"]
    if given:
        raise SpecError(
            f"is about the memory of a running VM, and {name} is shut off",
            path="--" + given[0].replace("_", "-").replace("recording", "record").replace("compression", "compress"),
            hint=f"leave it out, or start it first: vmkit start {name}",
        )


def same_storage(guest: GuestFacts, files: dict[str, Presence], copied: Collection[str] = ()) -> bool:
    """Whether every disk that the guest writes to, and that is not copied, is shown to be the very same on both hosts.

    Only then may libvirt's check, which knows network file systems and nothing else, be left out. QEMU drops its cached
    pages of an image at the switch-over since 3.0, so the cache mode does not matter for that.
    """
    written = [f for f in guest.files if f.written and not f.network and f.path not in copied]
    return bool(written) and all(files.get(f.path) is Presence.SAME for f in written)


def make_plan(request: Request, case: Case, report: Preflight, outlook: Outlook | None = None) -> Plan:
    """What would be done, and why; what preflight found, and what is expected, is among the choices."""
    against = tuple(f"refused: {f.text}" + (f" ({f.fix})" if f.fix else "") for f in report.refused)
    checks = tuple(
        Choice(f"check {f.check}", f.level.value, f.text + (f" ({f.fix})" if f.fix else "")) for f in report.findings
    )
    return Plan(
        title=f"Move {case.guest.name} from {case.source.uri} to {case.target.uri}",
        choices=(*_choices(request, case), *_outlook(outlook), *checks),
        steps=tuple(_steps(request, case)),
        warnings=(*against, *_unlikely(outlook), *(f.text for f in report.warnings)),
    )


def _outlook(outlook: Outlook | None) -> list[Choice]:
    if outlook is None:
        return []
    measured = [Choice(f"measured {what}", value, source) for what, value, source in describe(outlook.measured)]
    way = Choice("post-copy", "allowed" if outlook.ways.post_copy else "not used", outlook.ways.why)
    return [way, *measured, *(_expectation(p) for p in outlook.found.values())]


def _expectation(p: Prediction) -> Choice:
    total, stop = (f"{show_duration(r.low)} to {show_duration(r.high)}" for r in (p.total, p.downtime))
    sent = f"{Bytes(int(p.bytes.low))} to {Bytes(int(p.bytes.high))}"
    value = {"yes": "fits", "no": "does not fit", "unsure": "may fit"}[p.verdict]
    return Choice(f"expected {p.mode.value}", value, f"{p.why} (total {total}; downtime {stop}; {sent})")


def _unlikely(outlook: Outlook | None) -> list[str]:
    if outlook is None:
        return []
    p = expected(dict(outlook.found), outlook.terms)
    if p.verdict != "no":
        return []
    others = [o.mode.value for o in outlook.found.values() if o.verdict == "yes" and o.mode is not p.mode]
    way = f"; what fits: --mode {' or '.join(others)}" if others else ""
    return [f"{p.mode.value} is not expected to keep within the deadline and the downtime allowed: {p.why}{way}"]


def _choices(request: Request, case: Case) -> list[Choice]:
    moves = case.guest.persistent
    choices = [
        *(_of_memory(request) if not case.guest.off else [_COLD]),
        Choice(
            "definition",
            "moves along" if moves else "none",
            "the VM is defined here: afterwards it is at the target, and not here" if moves else "it is transient",
        ),
    ]
    to_copy = copies(case.guest, case.meeting)
    if to_copy:
        sent = Bytes(sum(c.size for c in to_copy))
        reason = f"the target has not {'it' if len(to_copy) == 1 else 'them'}: {', '.join(c.path for c in to_copy)}"
        if not case.guest.off:
            reason += "; the deadline and what is expected are of the memory, which follows"
        choices.append(Choice("storage", f"{sent} copied", reason))
    if same_storage(case.guest, case.meeting.files, {c.path for c in to_copy}):
        reason = "both hosts see the very same disk files"
        if not case.guest.off:
            reason += ", so libvirt's check for known network file systems is left out"
        choices.append(Choice("storage", "shared", reason))
    return choices


def _of_memory(request: Request) -> list[Choice]:
    limit = f"{Bytes(request.bandwidth)}/s" if request.bandwidth else "no limit"
    pause = show_duration(request.max_downtime) if request.max_downtime else "as QEMU has it"
    return [
        Choice("technique", request.mode.value, WHAT_IT_IS[request.mode]),
        Choice("steering", "this process", "it holds both connections: if it dies, both libvirts end the migration"),
        Choice("transport", request.carriage.taken.value, request.carriage.why),
        Choice("deadline", show_duration(request.deadline), "after that the transfer is given up; the VM runs on here"),
        Choice("bandwidth", limit, _why(request.bandwidth)),
        Choice("max downtime", pause, _why(request.max_downtime)),
    ]


def _steps(request: Request, case: Case) -> list[Step]:
    g, here, there = case.guest, case.source.hostname, case.target.hostname
    steps = [
        Step("check", "both hosts", "nothing is touched before all of it is in order"),
        *([Step("probe", request.probe, "to see the gap that the guest's users see")] if request.probe else []),
        *_copy_steps(case),
    ]
    definition = Step("move", "the definition" + (" and autostart" if g.autostart else ""), "it belongs to the VM")
    if g.off:
        steps += [definition, Step("verify", "both hosts", "exactly one has to have it")]
    else:
        steps += [
            Step(
                "send",
                f"up to {Bytes(g.memory)} of memory to {there}",
                "what the guest changes meanwhile is sent again",
            ),
            Step("switch", f"stop at {here}, go on at {there}", "when the rest fits into the allowed downtime"),
            Step("verify", "both hosts", "exactly one copy has to run"),
            *([definition] if g.persistent else []),
        ]
    if old := [c.path for c in copies(g, case.meeting) if c.own]:
        seen = "is seen at the target" if g.off else "is seen to run at the target"
        steps.append(Step("remove", f"{', '.join(old)} at {here}", f"once the VM {seen}"))
    return steps


def _copy_steps(case: Case) -> list[Step]:
    why = {
        Kind.IMAGE: "an image, which stays there for other VMs",
        Kind.FILE: "nobody writes to it",
        Kind.IDLE: "as it lies, holes left out; that nobody wrote to it meanwhile is checked afterwards",
        Kind.DISK: "while the guest runs; what it writes meanwhile goes to both",
    }
    return [Step("copy", f"{c.path} ({c})", why[c.kind]) for c in copies(case.guest, case.meeting)]


def _why(value: float | None) -> str:
    return "the default" if value is None else "as asked"
