"""What a tunnel of ssh costs: the same bytes straight from host to host and through the tunnel of a migration.

Everything runs between the two hosts of a lab that is made for it (root is needed), once over a link that is limited
to 100 Mbit/s, by way of this machine (two legs), and once without a limit from this machine (one leg), where the
encryption itself shows. paramiko does the latter too: it is why the tunnel is made of ssh(1).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from measure import BenchError, Sample, output_of

SUMMARY = "a stream from host to host: straight, and through the tunnel of a migration (needs root)"
LAB = "bench-tunnel"
RATE = "100mbit"
LIMITED, FREE = 24 * 2**20, 128 * 2**20
PORT = 7700
BIN = Path(sys.executable).parent
COST = 1.15
"""A limited link carries at least 1/1.15 of what it carries straight."""


def run(*, quick: bool, uri: str | None) -> dict[str, Any]:
    """Measure; returns rows, ratios and claims."""
    if os.geteuid() != 0:
        raise BenchError("it makes a lab of its own: run as root")
    if uri is not None:
        raise BenchError("it measures between hosts of its own: leave -c away")
    from vmkit.errors import VmkitError
    from vmkit.lab.api import Labs

    with tempfile.TemporaryDirectory(prefix="vmkit-bench-") as folder:
        os.environ["VMKIT_HOME"] = folder
        labs = Labs()
        try:
            lab = labs.up("pair", name=LAB)
            try:
                times = _measure(lab, 3 if quick else 7)
            finally:
                labs.down(lab.name)
        except VmkitError as e:
            raise BenchError(e.message) from e
    samples = {name: Sample.of(name, seconds) for name, (seconds, _) in times.items()}
    rows = [{**s.plain(), "relative": round(s.median / samples[times[n][1]].median, 2)} for n, s in samples.items()]
    ratio = samples["limited, tunnel"].median / samples["limited, straight"].median
    text = f"over a link of {RATE} the tunnel takes at most {COST:g} x the time of the straight stream"
    return {
        "uri": "two hosts of a lab",
        "versions": {"vmkit": output_of([str(BIN / "vmkit"), "--version"]), "ssh": _ssh_version()},
        "unit": "ms",
        "relative": "straight",
        "bytes": {"limited": LIMITED, "free": FREE},
        "rows": rows,
        "claims": [{"claim": text, "ratio": round(ratio, 2), "holds": ratio <= COST}],
    }


def _ssh_version() -> str:
    done = subprocess.run(["ssh", "-V"], capture_output=True, text=True, timeout=30, check=False)
    return done.stderr.strip().split(",")[0]


def _measure(lab: Any, runs: int) -> dict[str, tuple[list[float], str]]:
    """Seconds of each way, in rounds, each with what it is compared with; the first round is a warm-up."""
    from vmkit.system.tunnel import Road, opened, swept

    one, two = lab.hosts[:2]
    tunnel = Road.between(one.uri, two.uri, "bench2", ["memory"])
    tuned = Road.between(one.uri, two.uri, "bench3", ["memory"], "bbr")
    local = Road.between("qemu:///system", two.uri, "bench1", ["memory"])
    straight = f"{two.address}:{PORT}"
    _inside(one, "tc", "qdisc", "add", "dev", "uplink", "root", "tbf", "rate", RATE, "burst", "256k", "latency", "50ms")

    def through(road: Road, size: int, sender: Any) -> float:
        with opened(road), _sink(two, road.path("memory")):
            return _sent(sender, road.path("memory"), size)

    def direct(size: int, sender: Any) -> float:
        with _sink(two, straight):
            return _sent(sender, straight, size)

    ways: dict[str, tuple[Callable[[], float], str]] = {
        "limited, straight": (lambda: direct(LIMITED, one), "limited, straight"),
        "limited, tunnel": (lambda: through(tunnel, LIMITED, one), "limited, straight"),
        "limited, tunnel with bbr": (lambda: through(tuned, LIMITED, one), "limited, straight"),
        "free, straight": (lambda: direct(FREE, None), "free, straight"),
        "free, tunnel": (lambda: through(local, FREE, None), "free, straight"),
        "free, paramiko": (lambda: _paramiko(two, straight, FREE), "free, straight"),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    try:
        for i in range(1 + runs):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                took = ways[name][0]()
                swept_scratch(tunnel, tuned)
                if i:
                    times[name].append(took)
    finally:
        for road in (tunnel, tuned, local):
            swept(road)
    return {name: (seconds, ways[name][1]) for name, seconds in times.items()}


def swept_scratch(*roads: Any) -> None:
    """The folder of two legs is made by each opening."""
    for road in roads:
        with suppress(FileNotFoundError):
            Path(road.scratch).rmdir()


def _enter(host: Any, *argv: str) -> list[str]:
    return ["nsenter", f"--target={host.pid}", "--net", "--mount", "--", *argv]


def _inside(host: Any, *argv: str) -> None:
    done = subprocess.run(_enter(host, *argv), capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise BenchError(f"'{' '.join(argv)}' in {host.name} failed: {done.stderr.strip()}")


@contextmanager
def _sink(host: Any, where: str) -> Iterator[None]:
    """Something in a host that reads one stream to its end and answers with a byte."""
    argv = _enter(host, sys.executable, str(Path(__file__).resolve()), "sink", where)
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        if process.stdout is None or process.stdout.readline() != b"ready\n":
            raise BenchError(f"nothing listens at {where} in {host.name}")
        try:
            yield
        finally:
            process.terminate()


def _sent(host: Any, where: str, size: int) -> float:
    """Seconds that it takes to send so much, from a host or (None) from this machine, to the answer."""
    argv = [sys.executable, str(Path(__file__).resolve()), "source", where, str(size)]
    argv = argv if host is None else _enter(host, *argv)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise BenchError(f"sending to {where} failed: {done.stderr.strip()[-300:]}")
    return float(done.stdout)


def _paramiko(host: Any, where: str, size: int) -> float:
    """The same through a channel of paramiko, from this process, which already has the bytes."""
    import paramiko

    client = paramiko.SSHClient()
    client.load_host_keys(str(host.ssh.known_hosts))
    client.connect(host.ssh.host, host.ssh.port, host.ssh.user, key_filename=str(host.ssh.key), allow_agent=False)
    address, _, port = where.rpartition(":")
    transport = client.get_transport()
    if transport is None:
        raise BenchError("paramiko has no connection")
    with client, _sink(host, where):
        channel = transport.open_channel("direct-tcpip", (address, int(port)), ("127.0.0.1", 0), window_size=2**24)
        start = time.perf_counter()
        _pour(channel.sendall, size)
        channel.shutdown_write()
        if channel.recv(1) != b".":
            raise BenchError("paramiko lost the stream")
        return time.perf_counter() - start


def _pour(send: Callable[[bytes], Any], size: int) -> None:
    piece = os.urandom(2**18)
    for _ in range(size // len(piece)):
        send(piece)


# -- what follows runs inside the hosts


def _address(where: str) -> tuple[int, Any]:
    host, _, port = where.rpartition(":")
    return (socket.AF_INET, (host, int(port))) if host else (socket.AF_UNIX, where)


def sink(where: str) -> None:
    family, address = _address(where)
    with socket.socket(family) as listener:
        if family == socket.AF_INET:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            Path(where).unlink(missing_ok=True)
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        one, _ = listener.accept()
        with one:
            space = bytearray(2**18)
            while one.recv_into(space):
                pass
            one.sendall(b".")


def source(where: str, size: int) -> None:
    family, address = _address(where)
    with socket.socket(family) as one:
        one.connect(address)
        start = time.perf_counter()
        _pour(one.sendall, size)
        one.shutdown(socket.SHUT_WR)
        if one.recv(1) != b".":
            raise SystemExit("the stream broke")
        print(time.perf_counter() - start)


if __name__ == "__main__":
    sink(sys.argv[2]) if sys.argv[1] == "sink" else source(sys.argv[2], int(sys.argv[3]))
