"""What is run to measure, and how its output is read. Pure. The programs are those of the bench image."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from vmkit.errors import SpecError
from vmkit.host.measured import Area

Values = Mapping[str, float]
"""Name of a workload -> what one run of it gave."""

_SYSBENCH_RATE: Final = re.compile(r"events per second:\s+([0-9.]+)")
_METRIC: Final = re.compile(
    r"(?:metrc|info):\s+\[\d+\]\s+(?P<name>[a-z0-9_-]+)\s+(?P<ops>\d+)(?P<rest>(?:\s+[0-9.]+){5,})"
)
"""A line of stress-ng --metrics-brief: stressor, bogo ops, real time, user time, system time, bogo ops/s by real time,
bogo ops/s by CPU time. The tag was 'info' before version 0.15 and is 'metrc' since."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One program that is run, and the figures that it gives.

    Attributes:
        name: its name; that of its only figure, where there is one.
        area: what it stresses.
        program: file in the bench image.
        arguments: of a run of so many seconds, where scratch files go to a folder (or a device is read).
        figures: name of each figure and its unit; more is better.
        parse: the figures in the output.
        why: what it shows, for people.
        runs: how many times `seconds` one run takes.
    """

    name: str
    area: Area
    program: str
    arguments: Callable[[int, str], list[str]]
    figures: tuple[tuple[str, str], ...]
    parse: Callable[[str], Values]
    why: str
    runs: int = 1


def parse_sysbench(name: str) -> Callable[[str], Values]:
    """Reader of sysbench's report."""

    def parse(text: str) -> Values:
        match = _SYSBENCH_RATE.search(text)
        if not match:
            raise _unreadable("sysbench", text)
        return {name: float(match[1])}

    return parse


def parse_stress(name: str, stressor: str) -> Callable[[str], Values]:
    """Reader of stress-ng's metrics: operations a second of real time."""

    def parse(text: str) -> Values:
        for match in _METRIC.finditer(text):
            if match["name"] == stressor:
                if rate := float(match["rest"].split()[3]):
                    return {name: rate}
                raise SpecError("stress-ng completed nothing within the sample", hint="give more --seconds")
        raise _unreadable("stress-ng", text)

    return parse


def parse_fio(text: str) -> Values:
    """Reader of fio's JSON: operations a second of the random job, MiB a second of the sequential one."""
    body = _json("fio", text)
    try:
        reads = {job["jobname"]: job["read"] for job in body["jobs"]}
        return {
            "random-read": float(reads["random-read"]["iops"]),
            "sequential-read": float(reads["sequential-read"]["bw_bytes"]) / 2**20,
        }
    except (KeyError, TypeError, ValueError) as e:
        raise _unreadable("fio", text) from e


def parse_iperf(text: str) -> Values:
    """Reader of iperf3's JSON: Mbit a second that arrived.

    Raises:
        SpecError: iperf3 failed; the message is its own.
    """
    body = _json("iperf3", text)
    if error := body.get("error"):
        raise SpecError(f"iperf3: {error}")
    try:
        return {"tcp-stream": float(body["end"]["sum_received"]["bits_per_second"]) / 1e6}
    except (KeyError, TypeError, ValueError) as e:
        raise _unreadable("iperf3", text) from e


def _json(program: str, text: str) -> Any:
    """The JSON object in an output; the programs may say something before it."""
    try:
        body = json.loads(text[text.index("{") :])
    except ValueError as e:
        raise _unreadable(program, text) from e
    if not isinstance(body, dict):
        raise _unreadable(program, text)
    return body


def _unreadable(program: str, text: str) -> SpecError:
    return SpecError(f"the output of {program} has no figure", details=tuple(text.strip().splitlines()[-5:]))


def _sysbench(seconds: int, _where: str) -> list[str]:
    return ["cpu", "--cpu-max-prime=1000", "--threads=1", f"--time={seconds}", "run"]


def _stress(stressor: str, *more: str, times: int = 1) -> Callable[[int, str], list[str]]:
    def arguments(seconds: int, where: str) -> list[str]:
        return [
            f"--{stressor}",
            "1",
            *more,
            "--timeout",
            f"{seconds * times}s",
            "--metrics-brief",
            "--temp-path",
            where,
        ]

    return arguments


def _fio(seconds: int, where: str) -> list[str]:
    """`where` is a device in the guest, read past its page cache, or a file of the host's page cache."""
    direct = "1" if where.startswith("/dev/") and not where.startswith("/dev/shm/") else "0"  # noqa: S108 - a test of it
    common = ["--thread", "--ioengine=psync", f"--direct={direct}", "--invalidate=0", "--time_based", "--readonly"]
    return [
        *common,
        *(f"--runtime={seconds}", f"--filename={where}", f"--size={DISK_MIB}M", "--output-format=json"),
        *("--name=random-read", "--rw=randread", "--bs=4k"),
        *("--name=sequential-read", "--stonewall", "--rw=read", "--bs=128k"),
    ]


def _iperf(seconds: int, where: str) -> list[str]:
    return ["--client", where, "--time", str(seconds), "--json", "--connect-timeout", "5000"]


DISK_MIB: Final = 64
"""Size of the disk or file that is read, MiB: it fits into the page cache of every host."""

WORKLOADS: Final = (
    Workload(
        "integer",
        Area.CPU,
        "sysbench",
        _sysbench,
        (("integer", "events/s"),),
        parse_sysbench("integer"),
        "sysbench cpu: division in user mode, which no hypervisor but an emulator sees",
    ),
    Workload(
        "syscalls",
        Area.CPU,
        "stress-ng",
        _stress("null"),
        (("syscalls", "ops/s"),),
        parse_stress("syscalls", "null"),
        "stress-ng --null: short system calls; a binary translator has to catch each of them",
    ),
    Workload(
        "context-switch",
        Area.CPU,
        "stress-ng",
        _stress("switch"),
        (("context-switch", "ops/s"),),
        parse_stress("context-switch", "switch"),
        "stress-ng --switch: two processes take turns on a pipe; each turn loads another page table",
    ),
    Workload(
        "tlb-misses",
        Area.MEMORY,
        "stress-ng",
        _stress("matrix", "--matrix-size", "1024", "--matrix-method", "copy", "--matrix-yx", times=2),
        (("tlb-misses", "ops/s"),),
        parse_stress("tlb-misses", "matrix"),
        "stress-ng --matrix --matrix-yx: copies a matrix of 4 MiB by columns, each step on another page of 4 KiB and "
        "2,048 of them in turn, more than a TLB covers: nearly every access walks the page tables, two-dimensional "
        "under EPT and NPT, plain under shadow paging",
        runs=2,
    ),
    Workload(
        "page-faults",
        Area.MEMORY,
        "stress-ng",
        _stress("fault"),
        (("page-faults", "ops/s"),),
        parse_stress("page-faults", "fault"),
        "stress-ng --fault: maps, touches and unmaps pages; shadow paging exits at each change of a page table",
    ),
    Workload(
        "processes",
        Area.MEMORY,
        "stress-ng",
        _stress("fork"),
        (("processes", "ops/s"),),
        parse_stress("processes", "fork"),
        "stress-ng --fork: builds and drops whole page tables, the worst case of shadow paging",
    ),
    Workload(
        "reads",
        Area.DISK,
        "fio",
        _fio,
        (("random-read", "IOPS"), ("sequential-read", "MiB/s")),
        parse_fio,
        "fio, one request at a time, from data in the host's page cache: the road to the disk and not the disk",
        runs=2,
    ),
    Workload(
        "stream",
        Area.NETWORK,
        "iperf3",
        _iperf,
        (("tcp-stream", "Mbit/s"),),
        parse_iperf,
        "iperf3, one TCP connection from the host to the guest",
    ),
)


def names() -> tuple[str, ...]:
    """Every workload, and every area, that may be asked for."""
    return (*(a.value for a in Area), *(w.name for w in WORKLOADS))


def chosen(wanted: tuple[str, ...]) -> tuple[Workload, ...]:
    """The workloads of these names or areas; all for none.

    Raises:
        SpecError: there is none of that name.
    """
    for name in wanted:
        if name not in names():
            raise SpecError(f"there is no workload '{name}'", path="workloads", hint=f"there are: {', '.join(names())}")
    return tuple(w for w in WORKLOADS if not wanted or w.name in wanted or w.area.value in wanted)
