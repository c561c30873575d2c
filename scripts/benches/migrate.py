"""Migrations of one running guest over one limited link: virsh as it is, with its two remedies, and vmkit.

The guest writes its memory at a share of the bandwidth, over and over the same working set. Each tool moves it in turn,
in rounds. Times of the transfer and of standing still are libvirt's, by the same account for all; the gap is what a
prober outside saw. What virsh does by itself is recorded, and shown to the published controllers as policies. What
vmkit foretold is compared with what came of it.

VMKIT_BENCH_RUNS says how often (5; all of it takes an hour), VMKIT_BENCH_TOOLS which of the tools, with commas between
them, and VMKIT_BENCH_RECORD names a file that gets vmkit's own record of predictions and outcomes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import BenchError, output_of
from migrate_picture import draw
from migrate_table import result_of

SUMMARY = "a running guest from host to host: virsh, its remedies, and vmkit (needs root)"
BIN = Path(sys.executable).parent
LAB, VM = "bench-migrate", "bench"
LIMIT = 32
"""MiB a second."""
SHARES = (0.0, 0.25, 0.5, 0.9, 1.5, 3.0)
SETS = (16, 64)
"""Working sets, MiB."""
DEADLINE_S, BUDGET_S = 45.0, 0.3
WARM_UP = 6
"""Migrations before the first that counts, every other one without a limit: vmkit learns from them what the link
carries while the guest stands still, and what a migration takes beside the sending."""
VIRSH = {
    "virsh": (),
    "virsh --auto-converge": ("--auto-converge",),
    "virsh --postcopy": ("--postcopy", "--postcopy-after-precopy"),
}
TOOLS = (*VIRSH, "vmkit")


@dataclass(frozen=True, slots=True)
class Cell:
    """What the guest does: how much it writes in a second, as a share of the bandwidth, and over how much memory."""

    share: float
    size: int

    @property
    def rate(self) -> int:
        """MiB a second."""
        return round(self.share * LIMIT)

    @property
    def name(self) -> str:
        return f"{self.share:g} x {self.size}M" if self.share else "idle"


@dataclass(frozen=True, slots=True)
class Ran:
    """One migration. Times in ms; None where it did not come about, or nobody counted.

    Attributes:
        end: 'arrived', or how it ended instead.
        total: the transfer, by libvirt's count; of one that was given up, until then.
        wall: the whole command.
        evidence: from the end of the first pass until vmkit gave it up.
    """

    end: str
    total: float
    wall: float
    downtime: float | None = None
    gap: float | None = None
    evidence: float | None = None


def run(*, quick: bool, uri: str | None) -> dict[str, Any]:
    """Measure; returns rows, a table and claims."""
    if os.geteuid() != 0:
        raise BenchError("it makes a lab of its own: run as root")
    if uri is not None:
        raise BenchError("it measures between hosts of its own: leave -c away")
    from vmkit.errors import VmkitError
    from vmkit.lab.api import Labs
    from vmkit.migrate import record

    runs, cells = (1, _cells((0.0, 0.5, 3.0))) if quick else (5, _cells(SHARES))
    only = os.environ.get("VMKIT_BENCH_TOOLS", "").split(",")
    tools = [t for t in TOOLS if t in only] or list(TOOLS)
    runs = int(os.environ.get("VMKIT_BENCH_RUNS", runs))
    with tempfile.TemporaryDirectory(prefix="vmkit-bench-") as folder:
        os.environ["VMKIT_HOME"] = folder
        labs = Labs()
        try:
            lab = labs.up("pair", name=LAB)
            try:
                with _guest(lab) as bench:
                    seen, replayed = _measure(bench, cells, tools, runs)
            finally:
                labs.down(lab.name)
        except VmkitError as e:
            raise BenchError(e.message) from e
        lines = record.read()
        if kept := os.environ.get("VMKIT_BENCH_RECORD"):
            Path(kept).write_text(record.path().read_text())
    versions = {"vmkit": output_of([str(BIN / "vmkit"), "--version"]), "libvirt": output_of(["virsh", "--version"])}
    accuracy = record.accuracy(lines[WARM_UP:])
    result = result_of(seen, replayed, accuracy, BUDGET_S)
    return {"uri": "two hosts of a lab", "versions": versions, **result, "draw": lambda: draw(seen)}


def _cells(shares: tuple[float, ...]) -> list[Cell]:
    idle = [Cell(0.0, 0)] if 0.0 in shares else []
    return idle + [Cell(share, size) for size in SETS for share in shares if share]


class Bench:
    """The guest, wherever it is."""

    def __init__(self, lab: Any) -> None:
        self.uris = [h.uri for h in lab.hosts[:2]]
        self.address = lab.hosts[0].static[0]
        self.prefix = lab.hosts[0].subnet.partition("/")[2]

    def at(self) -> int:
        from vmkit.hypervisor.host import Host
        from vmkit.hypervisor.migration import find

        for i, uri in enumerate(self.uris):
            with Host.connect(uri) as host:
                domain = find(host, name=VM)
                if domain is not None and domain.state().active:
                    return i
        raise BenchError("the guest runs on neither host")

    def set(self, cell: Cell) -> None:
        """Have the guest write as this cell says, for two seconds before anything is measured."""
        from vmkit.client import Client

        with Client(self.uris[self.at()]) as client:
            vm = client.vms.get(VM)
            vm.guest_exec(["dirty", "stop"], timeout=120.0)
            if cell.rate:
                vm.guest_exec(["dirty", f"{cell.size}M", f"{cell.rate}M"], timeout=120.0)
        time.sleep(2.0)

    @contextlib.contextmanager
    def probed(self) -> Iterator[Callable[[], float | None]]:
        """A prober outside; the answer is the longest gap, ms."""
        from vmkit.migrate.probe import probing

        with probing(self.address, patience=30.0) as prober:
            yield lambda: prober.finish().gap_ms if prober else None


@contextlib.contextmanager
def _guest(lab: Any) -> Iterator[Bench]:
    from vmkit.client import Client

    bench = Bench(lab)
    Client().images.build_micro()
    nic = {"network": "lab", "address": f"{bench.address}/{bench.prefix}"}
    with Client(bench.uris[0]) as client:
        client.vms.create(
            {"name": VM, "image": "micro", "memory": "256M", "accel": "tcg", "nics": [nic]}, wait=True, deadline=300.0
        )
    yield bench


def _measure(
    bench: Bench, cells: list[Cell], tools: list[str], runs: int
) -> tuple[dict[tuple[str, str], list[Ran]], dict[str, list[Any]]]:
    """Every cell with every tool, in rounds; and what each controller would have done with what virsh went through."""
    from vmkit.migrate.replay import replay_all

    seen: dict[tuple[str, str], list[Ran]] = {}
    replayed: dict[str, list[Any]] = {}
    for i in range(WARM_UP):
        _vmkit(bench, limit=None if i % 2 else LIMIT)
    for i in range(runs):
        for cell in cells:
            bench.set(cell)
            for tool in tools[i % len(tools) :] + tools[: i % len(tools)]:
                if tool == "vmkit":
                    ran = _vmkit(bench)
                else:
                    ran, recording = _virsh(bench, VIRSH[tool])
                    if tool == "virsh" and cell.name not in replayed:
                        replayed[cell.name] = replay_all(recording)
                seen.setdefault((cell.name, tool), []).append(ran)
                _tell(f"round {i + 1} of {runs}, {cell.name}, {tool}: {ran.end} after {ran.total:.0f} ms")
    return seen, replayed


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _vmkit(bench: Bench, limit: int | None = LIMIT) -> Ran:
    from vmkit.client import Client
    from vmkit.errors import CancelledError, VmkitError
    from vmkit.migrate.replay import load

    at = bench.at()
    with tempfile.TemporaryDirectory() as folder:
        file, start = Path(folder) / "recording", time.perf_counter()
        how = {
            "deadline": DEADLINE_S,
            "bandwidth": limit and limit * 2**20,
            "max_downtime": BUDGET_S,
            "recording": file,
        }
        try:
            with Client(bench.uris[at]) as client:
                done = client.migrations.migrate(VM, bench.uris[1 - at], probe=bench.address, **how)
        except CancelledError as e:  # SIGTERM and Ctrl-C end a migration in order; here they end the bench
            raise KeyboardInterrupt from e
        except VmkitError as e:
            wall = _ms(start)
            looks = load(file).looks if file.exists() else []
            passed = next((look.t for look in looks if look.iteration > 1), None)
            late = None if passed is None else (looks[-1].t - passed) * 1000
            if bench.at() != at:
                raise BenchError(f"vmkit says '{e.message}', and the guest is at the target") from e
            return Ran("given up", looks[-1].t * 1000 if looks else 0.0, wall, evidence=late)
    return Ran("arrived", float(done.transfer_ms or done.total_ms), _ms(start), done.downtime_ms, done.guest_gap_ms)


def _virsh(bench: Bench, options: tuple[str, ...]) -> tuple[Ran, Any]:
    """One migration by virsh, ended at the deadline; and its recording."""
    from vmkit.errors import VmkitError
    from vmkit.hypervisor.host import Host
    from vmkit.migrate.control import Look, Terms
    from vmkit.migrate.replay import Recording

    at = bench.at()
    argv = ["virsh", "-c", bench.uris[at], "migrate", "--live", "--persistent", "--undefinesource", "--unsafe"]
    argv += ["--bandwidth", str(LIMIT), *options, VM, bench.uris[1 - at]]
    looks: list[Look] = []
    with Host.connect(bench.uris[at]) as source, Host.connect(bench.uris[1 - at]) as target, bench.probed() as gap:
        domain, start = source.domain(VM), time.perf_counter()
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        late = False
        while process.poll() is None:
            with contextlib.suppress(VmkitError):  # it has just left
                stats = domain.job()
                if stats is not None and stats.total:
                    looks.append(Look.of(_ms(start) / 1000, stats))
                if _ms(start) > DEADLINE_S * 1000 and not late:
                    late = True
                    domain.abort_job()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        wall = _ms(start)
        recording = Recording(VM, Terms(budget=BUDGET_S, deadline=DEADLINE_S, limited=True), looks, [], {}, {})
        if process.returncode != 0:
            if not late:
                raise BenchError(f"virsh: {process.stderr.read().strip()[-300:] if process.stderr else ''}")
            return Ran("not at an end", wall, wall), recording
        stats = target.domain(VM).completed_job()
        took = float(stats.elapsed_ms) if stats else wall
        return Ran("arrived", took, wall, stats.downtime_ms if stats else None, gap()), recording


def _ms(start: float) -> float:
    return (time.perf_counter() - start) * 1000
