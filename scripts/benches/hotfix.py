"""How long guests stand for a hot-fix: N of them at once, beside the floor, a pause and a resume with nothing between.

Everything runs on one host of a lab that is made for it (root is needed). Floor and fix take the same road: the same
calls in the same threads, all guests paused before anything is done and none resumed before all of it is done.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import BenchError, Sample, output_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmkit.client import Client

SUMMARY = "pause of 1, 10 and 40 guests that are hot-fixed, beside a pause with nothing done in it (needs root)"
LAB = "bench-hotfix"
BIN = Path(sys.executable).parent
COUNTS = (1, 10, 40)
QUICK_COUNTS = (1, 3)
LIMIT = 1.5
"""Of the floor's median pause, at most this many times as long for the most guests, as the project promises it."""
MAX_PAUSE = 30.0
"""Seconds: a machine that is busy must not end the measurement."""
QEMU = Path("/usr/bin/qemu-system-x86_64")
BEFORE, AFTER = "b8 ed 00 00 01", "b8 ed 00 00 02"
"""What the `edu` device answers when it is asked for its identification: `mov $0x010000ed, %eax` (hw/misc/edu.c)."""


def run(*, quick: bool, uri: str | None) -> dict[str, Any]:
    """Measure; returns rows, ratios and claims."""
    if os.geteuid() != 0:
        raise BenchError("it makes a lab of its own: run as root")
    if uri is not None:
        raise BenchError("it measures on a host of its own: leave -c away")
    counts = QUICK_COUNTS if quick else COUNTS
    with tempfile.TemporaryDirectory(prefix="vmkit-bench-") as folder:
        environment = {**os.environ, "VMKIT_HOME": folder}
        vmkit = [str(BIN / "vmkit")]
        print("bench: building the micro image, and a lab ...", file=sys.stderr)
        _call([*vmkit, "image", "build", "micro"], environment)
        try:
            _call([*vmkit, "lab", "up", "pair", "--name", LAB], environment)
            inside = [sys.executable, str(Path(__file__).resolve()), "3" if quick else "9", *map(str, counts)]
            done = _call([*vmkit, "lab", "exec", f"{LAB}/h1", "--", *inside], environment, timeout=7200)
        finally:
            # Also where it came up by half: what a killed command began is undone by the next one.
            subprocess.run([*vmkit, "lab", "down", LAB], env=environment, check=False)
    measured: dict[str, dict[str, list[float]]] = json.loads(done)
    return {
        "uri": "a host of a lab",
        "versions": {
            "vmkit": output_of([str(BIN / "vmkit"), "--version"]),
            "libvirt": output_of(["virsh", "--version"]),
            "QEMU": output_of([str(QEMU), "--version"]).splitlines()[0].split("version ")[-1],
        },
        "unit": "ms",
        "measured_is": "how long a guest stands, and how long all stand at once; floor and fix in turns",
        "relative": "the floor",
        "rows": rows(measured),
        "claims": claims(measured),
    }


def rows(measured: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """For each number of guests: pause of a guest in the floor and in the fix, and how long all stood at once."""
    found = []
    for count, by_name in measured.items():
        for what, floor in (("pause of a guest", "floor"), ("all stand", "floor, all stand")):
            least = Sample.of("", by_name[floor]).median
            for name in (n for n in by_name if ("all stand" in n) is (what == "all stand")):
                sample = Sample.of(f"{count} guests: {name}", by_name[name])
                row = {"slowest": round(max(by_name[name]) * 1000, 2), "relative": round(sample.median / least, 2)}
                found.append({**sample.plain(), **row})
    return found


def claims(measured: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """What is promised of them."""

    def median(count: str, name: str) -> float:
        return Sample.of("", measured[count][name]).median

    counts = list(measured)
    most = counts[-1]
    ratio = median(most, "fix") / median(most, "floor")
    text = f"of {most} guests that are fixed one stands at most {LIMIT:g} x as long as with nothing done"
    found = [{"claim": text, "ratio": round(ratio, 2), "holds": ratio <= LIMIT}]
    for fewer, more in itertools.pairwise(counts):
        growth = median(more, "fix, all stand") / median(fewer, "fix, all stand")
        linear = int(more) / int(fewer)
        text = f"from {fewer} to {more} guests the time for which all stand grows at most {linear:g} x"
        found.append({"claim": text, "ratio": round(growth, 2), "holds": growth <= linear})
    return found


def _call(argv: list[str], environment: dict[str, str], timeout: float = 900) -> str:
    """Run it; what it prints. Where this program is told to end, it is too, in order."""
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=environment) as child:
        try:
            out, _ = child.communicate(timeout=timeout)
        except BaseException:
            child.terminate()
            with suppress(subprocess.TimeoutExpired):
                child.wait(60)
            child.kill()
            raise
    if child.returncode != 0:
        raise BenchError(f"'{' '.join(argv)}' failed with {child.returncode}")
    return out


# -- what follows runs inside the lab's host


def inside(runs: int, counts: list[int]) -> dict[str, dict[str, list[float]]]:
    """Seconds by number of guests and name. Floor and fix take turns; the first round of each count is a warm-up."""
    from vmkit.client import Client

    found: dict[str, dict[str, list[float]]] = {}
    with Client() as client, tempfile.TemporaryDirectory() as folder:
        patch = Path(folder) / "edu.toml"
        client.hotfixes.make(QEMU, find=BEFORE, replace=AFTER, id="bench-edu", path=patch)
        there = 0
        for count in counts:
            print(f"bench: {count} guests ...", file=sys.stderr)
            client.vms.create_many([_spec(i) for i in range(there, count)], wait=True, deadline=1800.0)
            there = count
            _see_that_it_works(client, patch)
            times: dict[str, list[float]] = {}
            for i in range(1 + runs):
                for name, pauses, standing in _round(client, patch):
                    if i:
                        times.setdefault(name, []).extend(ms / 1000 for ms in pauses)
                        times.setdefault(f"{name}, all stand", []).append(standing / 1000)
            found[str(count)] = times
        client.vms.delete_all(force=True)
    return found


def _spec(number: int) -> dict[str, Any]:
    return {
        "name": f"guest{number:02}",
        "image": "micro",
        "memory": "96M",
        "accel": "tcg",
        "cmdline": "vmkit.tick=1000",  # idle guests leave the CPUs to what is measured
        "nics": [{"network": "none"}],
        "qemu_args": ["-device", "edu,addr=0x1e"],
    }


def _see_that_it_works(client: Client, patch: Path) -> None:
    """Every guest sees the device change and change back, and goes on counting."""

    def seen(command: str) -> list[int]:
        return [int(vm.guest_exec([command]).stdout, 0) for vm in vms]

    vms = [client.vms.get(r.name) for r in client.vms.list()]
    before = seen("counter"), seen("edu-id")
    client.hotfixes.apply(patch, allow_unsigned=True, max_pause=MAX_PAUSE)
    during = seen("edu-id")
    client.hotfixes.revert(patch, max_pause=MAX_PAUSE)
    after = seen("counter"), seen("edu-id")
    counting = all(late > early for early, late in zip(before[0], after[0], strict=True))
    if not counting or set(before[1]) != set(after[1]) or set(during) & set(before[1]):
        raise BenchError(f"not every guest saw the change and went on: {before}, {during}, {after}")


def _round(client: Client, patch: Path) -> Iterator[tuple[str, list[float], float]]:
    """The floor, the fix, and the fix taken back: name, pause of each guest and time for which all stood, in ms."""
    from vmkit.hotfix.targets.qemu import QemuGuest
    from vmkit.hotfix.transaction import Transaction

    guests = [QemuGuest(d, runs=True) for d in client.host.domains()]
    floor = Transaction("floor", [], guests, hook=lambda _step: None)
    floor.run()
    yield "floor", list(floor.outcome.pause_ms.values()), floor.outcome.standing_ms
    for name, report in (
        ("fix", client.hotfixes.apply(patch, allow_unsigned=True, max_pause=MAX_PAUSE)),
        ("fix taken back", client.hotfixes.revert(patch, max_pause=MAX_PAUSE)),
    ):
        yield name, [p.pause_ms for p in report.processes if p.pause_ms is not None], report.standing_ms


if __name__ == "__main__":
    try:
        print(json.dumps(inside(int(sys.argv[1]), [int(n) for n in sys.argv[2:]])))
    except BenchError as e:
        print(f"error: {e}", file=sys.stderr)
        sys.exit(4)
