"""One VM's day, by vmkit's Python API: created, moved live to another host, hot-fixed while it runs, taken down.

The two hosts are a lab of this machine's own. Every claim is checked from outside the code that makes it; the exit
status is 0 only if all of them hold.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from vmkit import Client
from vmkit.cli.render import error_lines, progress
from vmkit.errors import NotFoundError, VmkitError
from vmkit.hypervisor.host import facts_of
from vmkit.progress import Event, Finished, Note, Reporter, Started
from vmkit.recovery import recover_all
from vmkit.system.files import home, locked
from vmkit.system.udp import UdpPeer
from vmkit.values import show_duration, to_plain

if TYPE_CHECKING:
    from vmkit.lab.api import Lab, LabHost
    from vmkit.vm.machine import Vm

LAB = "demo"
VM = "web1"
IMAGE = "micro"
PATCH = "demo-edu-id"
COUNTER_PORT = 7007
# `mov $0x10000ed,%eax` in edu_mmio_read: what QEMU's edu device answers when a guest reads its identification
# register (QEMU's docs/specs/edu.rst). The hot-fix makes it answer as revision 2.
FIND, REPLACE = "b8 ed 00 00 01", "b8 ed 00 00 02"


@dataclass
class Watch:
    """Asks the guest's counter by UDP all the while: a thread, and what it saw (seconds, value)."""

    address: str
    samples: list[tuple[float, int]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def running(self) -> Iterator[Watch]:
        thread = threading.Thread(target=self._run, name="counter", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join(10)

    def _run(self) -> None:
        start = time.monotonic()
        with UdpPeer(self.address, COUNTER_PORT) as peer:
            while not self._stop.wait(0.05):
                answer = peer.ask(b"?", timeout=1.0)
                if answer and answer.strip().isdigit():
                    self.samples.append((time.monotonic() - start, int(answer)))

    @property
    def unbroken(self) -> bool:
        """Whether it only ever grew. (Answers cannot overtake each other: one is awaited before the next is asked.)"""
        values = [v for _, v in self.samples]
        return len(values) > 1 and all(a <= b for a, b in itertools.pairwise(values)) and values[0] < values[-1]


@dataclass(frozen=True)
class Inside:
    """What the guest itself says at one moment: boot id, seconds since boot, the counter."""

    boot_id: str
    uptime: float
    counter: int

    @classmethod
    def of(cls, vm: Vm) -> Inside:
        boot_id = guest(vm, "cat", "/proc/sys/kernel/random/boot_id")
        counter = int(guest(vm, "counter"))
        return cls(boot_id, float(guest(vm, "cat", "/proc/uptime").split()[0]), counter)

    def follows(self, earlier: Inside) -> bool:
        """Whether this is the same boot, later; and the counter has no more ticks of 10 ms than the guest lived."""
        same = self.boot_id == earlier.boot_id
        return same and self.uptime > earlier.uptime and earlier.counter < self.counter <= self.uptime * 100 + 1


def guest(vm: Vm, *argv: str) -> str:
    """What a program in the guest prints."""
    done = vm.guest_exec(list(argv))
    if done.status != 0:
        raise VmkitError(f"'{argv[0]}' in {vm.name} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


# -- telling


@contextlib.contextmanager
def telling() -> Iterator[Reporter]:
    """A moving display on a terminal; else a line for each step that has ended."""
    if sys.stderr.isatty():
        with progress() as reporter:
            yield reporter
        return

    def plain(event: Event) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody reads; the lab is taken down all the same
            match event:
                case Finished(step, seconds, text):
                    print(f"  {step:<14} {text}".rstrip() + f"  {show_duration(seconds)}", file=sys.stderr)
                case Note(text, warning):
                    print(f"{'warning: ' if warning else ''}{text}", file=sys.stderr)

    yield plain


@contextlib.contextmanager
def step(tell: Reporter, name: str) -> Iterator[None]:
    """One step of the demo itself."""
    start = time.monotonic()
    tell(Started(name))
    yield
    tell(Finished(name, time.monotonic() - start))


# -- the story


@contextlib.contextmanager
def lab_up(client: Client, tell: Reporter, *, keep: bool) -> Iterator[Lab]:
    """The lab, made anew; taken down at the end whatever happens (the signals that would stop that wait meanwhile)."""
    take_down(client, tell)
    try:
        yield client.labs.up("pair", name=LAB, reporter=tell)
    finally:
        if not keep:
            held = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
            try:
                with step(tell, "take down"):
                    take_down(client, tell)
            finally:
                for number, handler in held.items():
                    signal.signal(number, handler)


def take_down(client: Client, tell: Reporter) -> None:
    with contextlib.suppress(NotFoundError):
        client.labs.down(LAB, reporter=tell)


def spec(host: LabHost) -> dict[str, Any]:
    prefix = host.subnet.partition("/")[2]
    return {
        "name": VM,
        "image": IMAGE,
        "memory": "256M",
        "nics": [{"network": "lab", "address": f"{host.static[0]}/{prefix}", "gateway": host.gateway}],
        # A slot that libvirt leaves free: QEMU places devices of this form before those that libvirt gives it as JSON.
        "qemu_args": ["-device", "edu,bus=pcie.0,addr=0x1e"],
    }


def story(tell: Reporter, *, keep: bool) -> dict[str, Any]:
    """Carry it out; returns the result as plain data."""
    result: dict[str, Any] = {}
    with Client() as local:
        tell(Note("1. An image"))
        image(local, tell)
        tell(Note("2. Two hosts on this machine, each with a libvirt of its own"))
        with lab_up(local, tell, keep=keep) as lab:
            one, two = lab.hosts[:2]
            with Client(one.uri) as first, Client(two.uri) as second:
                result["machine"] = machine(first)
                tell(Note(f"3. {VM} on {one.hostname}"))
                result |= create(first, one, tell)
                vm = first.vms.get(VM)
                begin = Inside.of(vm)
                with Watch(one.static[0]).running() as watch:
                    tell(Note(f"4. {VM} moves from {one.hostname} to {two.hostname} while it runs"))
                    result["migration"] = migrate(first, second, two, tell)
                    vm = second.vms.get(VM)
                    tell(Note(f"5. A hot-fix of the QEMU under {VM}, while {VM} runs, and back"))
                    result["hotfix"] = hotfix(second, vm, tell)
                    end = Inside.of(vm)
                result["counter"] = counter(watch, begin, end)
                result["counter_continuous"] = watch.unbroken and end.follows(begin)
            if keep:
                tell(Note(f"kept: VMKIT_CONNECT='{two.uri}' .venv/bin/vmkit list; then .venv/bin/vmkit lab down {LAB}"))
        result["left_behind"] = [] if keep else [h.name for h in local.labs.list() if h.lab == LAB]
    return result


def image(client: Client, tell: Reporter) -> None:
    try:
        client.images.get(IMAGE)
    except NotFoundError:
        client.images.build_micro(IMAGE, reporter=tell)
    else:
        tell(Note(f"   {IMAGE} is there already"))


def create(client: Client, host: LabHost, tell: Reporter) -> dict[str, Any]:
    wanted = spec(host)
    client.vms.plan(wanted, reporter=tell)  # settles whether KVM works, so that ready_s is of the VM alone
    start = time.monotonic()
    made = client.vms.create(wanted, wait=True, deadline=240.0, reporter=tell)
    seconds = time.monotonic() - start
    why = next((c.reason for c in made.plan.choices if c.value == made.accelerator), "")
    tell(Note(f"   runs under {made.accelerator}: {why}"))
    return {
        "accelerator": made.accelerator,
        "ready_s": round(seconds, 3),
        "readiness": to_plain(made.ready.steps) if made.ready else [],
    }


def migrate(source: Client, target: Client, to: LabHost, tell: Reporter) -> dict[str, Any]:
    report = source.migrations.migrate(VM, to.uri, deadline=240.0, probe=to.static[0], reporter=tell)
    running = [row for c in (source, target) for row in c.vms.list() if row.name == VM and row.state == "running"]
    plain: dict[str, Any] = to_plain(report)
    return plain | {"running_copies": report.running_copies, "seen_running": len(running)}


def hotfix(client: Client, vm: Vm, tell: Reporter) -> dict[str, Any]:
    binary = Path("/usr/bin/qemu-system-x86_64")
    with TemporaryDirectory(prefix="vmkit-demo.") as folder:
        path = Path(folder) / f"{PATCH}.toml"
        before = guest(vm, "edu-id")
        client.hotfixes.make(
            binary, find=FIND, replace=REPLACE, id=PATCH, title="edu: identify as revision 2", path=path
        )
        # A key of this run alone, trusted for as long as it takes.
        key = client.hotfixes.keygen(f"demo-{os.getpid()}", Path(folder), trust=True)
        try:
            client.hotfixes.sign(path, key.private)
            applied = client.hotfixes.apply(path, reporter=tell)
        finally:
            if key.trusted:
                key.trusted.unlink()
        during = guest(vm, "edu-id")
        tell(Note(f"   {VM} reads {during} from its edu device now; it was {before}"))
        reverted = client.hotfixes.revert(PATCH, reporter=tell)
        after = guest(vm, "edu-id")
    return {
        "pause_ms": round(applied.pause_ms, 3),
        "revert_pause_ms": round(reverted.pause_ms, 3),
        "visible_before": before,
        "visible_during": during,
        "visible_after_revert": after,
    }


def counter(watch: Watch, begin: Inside, end: Inside) -> dict[str, Any]:
    times = [t for t, _ in watch.samples]
    return {
        "samples": len(times),
        "longest_silence_ms": round(max((b - a for a, b in itertools.pairwise(times)), default=0.0) * 1000, 1),
        "first": begin.counter,
        "last": end.counter,
        "guest_uptime_s": [begin.uptime, end.uptime],
        "same_boot": begin.boot_id == end.boot_id,
    }


def machine(client: Client) -> dict[str, Any]:
    cpu = next(
        (x.partition(":")[2].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), ""
    )
    facts = facts_of(client.host)
    return {
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "memory_gib": round(int(Path("/proc/meminfo").read_text().split()[1]) / 2**20, 1),
        "kernel": platform.release(),
        "qemu": facts["hypervisor"],
        "libvirt": facts["libvirt"],
        "python": platform.python_version(),
    }


# -- judging and showing


def claims(r: dict[str, Any]) -> dict[str, bool]:
    """What has to hold, in words."""
    m, h = r["migration"], r["hotfix"]
    return {
        "exactly one copy runs after the migration": m["running_copies"] == 1 == m["seen_running"],
        "the downtime and the gap seen from outside were measured": None not in (m["downtime_ms"], m["guest_gap_ms"]),
        "the hot-fix changed what the guest sees": h["visible_before"] != h["visible_during"],
        "taking it back restored what the guest sees": h["visible_after_revert"] == h["visible_before"],
        "the guest's counter never restarted": r["counter_continuous"],
        "nothing is left of the lab": not r["left_behind"],
    }


def show(r: dict[str, Any], held: dict[str, bool]) -> None:
    from rich.console import Console
    from rich.table import Table

    m, h, c = r["migration"], r["hotfix"], r["counter"]
    table = Table(title=f"{VM}: created, moved, hot-fixed", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    rows = {
        "machine": f"{r['machine']['cpu']}, {r['machine']['cpus']} CPUs, QEMU {r['machine']['qemu']}, "
        f"libvirt {r['machine']['libvirt']}",
        "accelerator": r["accelerator"],
        "ready after": f"{r['ready_s']:.1f} s ("
        + ", ".join(f"{s['layer']} {s['seconds']:.1f}" for s in r["readiness"])
        + ")",
        "migration": f"{m['total_ms']} ms in all, guest stood still {m['downtime_ms']} ms by libvirt's count",
        "seen from outside": f"longest silence {m['guest_gap_ms']:.0f} ms" if m["guest_gap_ms"] is not None else "-",
        "running copies": str(m["running_copies"]),
        "hot-fix": f"guest paused {h['pause_ms']:.1f} ms (revert {h['revert_pause_ms']:.1f} ms)",
        "device id the guest reads": f"{h['visible_before']} -> {h['visible_during']} -> {h['visible_after_revert']}",
        "counter in its memory": f"{c['first']} -> {c['last']}, {c['samples']} readings, "
        + ("never restarted" if r["counter_continuous"] else "BROKEN"),
    }
    for name, text in rows.items():
        table.add_row(name, text)
    console = Console(highlight=False)
    console.print(table)
    for text, ok in held.items():
        console.print(f"[green]✓[/] {text}" if ok else f"[red]✗ does not hold:[/] {text}")


def _stop(number: int, _frame: object) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    parser.add_argument("--keep", action="store_true", help="leave the lab up at the end")
    args = parser.parse_args()
    if args.json:
        if args.json.is_dir() or not os.access(args.json.absolute().parent, os.W_OK):
            parser.error(f"cannot write {args.json}")
        args.json.unlink(missing_ok=True)  # an old result must not pass for this run's
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    try:
        with locked(home() / "demo.lock", busy="another demo is running on this machine"), telling() as tell:
            for line in recover_all():
                tell(Note(line, warning=True))
            result = story(tell, keep=args.keep)
    except VmkitError as e:
        print("\n".join(error_lines(e)), file=sys.stderr)
        return e.exit_code
    except (KeyboardInterrupt, SystemError) as e:
        # A signal during a call of libvirt's C code comes out as a SystemError that it caused.
        if isinstance(e, SystemError) and not isinstance(e.__cause__, KeyboardInterrupt):
            raise
        print("interrupted; the lab is taken down" if not args.keep else "interrupted", file=sys.stderr)
        return 130
    held = claims(result)
    show(result, held)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
