"""Two builds of a small server, and running copies of the old one, for the tests of patches made from builds."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

from tests.hotfix_targets import FakeDomain, FakeHost, Target
from vmkit.hotfix.api import Hotfixes
from vmkit.hotfix.transaction import Hook

SOURCE = Path(__file__).parent / "data" / "server.c"


def build(folder: Path, name: str, *flags: str, strip: bool = False) -> Path:
    """The server, under a name that looks like a QEMU's."""
    out = folder / f"qemu-system-{name}"
    argv = ["gcc", "-O2", "-g0", "-fcf-protection", "-pthread", "-Wl,--build-id=sha1", *flags, "-o", out, SOURCE]
    subprocess.run(argv, check=True, capture_output=True)
    if strip:
        subprocess.run(["strip", out], check=True, capture_output=True)
    return out


class Server(Target):
    """A running server."""

    def __init__(self, binary: Path, *args: str) -> None:
        self.uuid = str(uuid.uuid4())
        argv = [str(binary), "-uuid", self.uuid, *args]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.tell("?")

    def tell(self, line: str) -> str:
        """Its answer to a line."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def count(self) -> int:
        """How often its threads have called tick()."""
        return int(self.tell("?").split()[0])


QUESTIONS = (
    "s first",
    "v",
    "q 5",
    "q 100",
    "s hello",
    "s 50%",
    "s " + "x" * 40,
    *(f"w {n}" for n in range(10)),
    "r 3",
    "l 2",
)


def answers(server: Server) -> list[str]:
    """What a server says to all that the tests ask."""
    return [server.tell(q) for q in QUESTIONS]


def hotfixes(folder: Path, server: Server, hook: Hook | None = None) -> Hotfixes:
    """Hot-fixes of a host on which this server is the only QEMU."""
    host = FakeHost([FakeDomain(folder, "vm0", server.uuid)])
    return Hotfixes(lambda: host, hook=hook, allow_unsigned=True)  # type: ignore[arg-type,return-value]
