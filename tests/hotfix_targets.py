"""Small processes in the part of QEMU, and a host in the part of libvirt's, for the tests of hotfix.

The state of a guest is a file, so that a process that is killed leaves behind what it did.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from vmkit.errors import EffectError, NotFoundError
from vmkit.hotfix.api import Hotfixes
from vmkit.hypervisor.domain import DomainInfo, DomainState
from vmkit.system.elf import read_binary
from vmkit.system.process import ProcessId
from vmkit.system.procmem import ProcessMemory, mappings

SOURCE = Path(__file__).parent / "data" / "target.c"
OLD, NEW = 0x11223344, 0x55667788


def compile_target(folder: Path, *, name: str = "qemu-system-test", flags: tuple[str, ...] = ()) -> Path:
    """The target under a name that looks like a QEMU."""
    out = folder / name
    subprocess.run(
        ["gcc", "-O1", "-pthread", "-Wl,--build-id=sha1", *flags, "-o", out, SOURCE], check=True, capture_output=True
    )
    return out


class Target:
    """A running target."""

    def __init__(self, binary: Path, *args: str, uuid_: str | None = None) -> None:
        self.uuid = uuid_ or str(uuid.uuid4())
        argv = [str(binary), "-name", "x", "-uuid", self.uuid, *args]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ask()

    def ask(self) -> tuple[int, int, int]:
        """What answer() and straddle() return now, and the counter."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        a, b, c = self.process.stdout.readline().split()
        return int(a, 16), int(b, 16), int(c)

    def code(self) -> bytes:
        """All of its executable memory that comes from its file."""
        identity = ProcessId.of(self.process.pid)
        assert identity
        with ProcessMemory(identity) as memory:
            own = [m for m in mappings(self.process.pid) if "x" in m.permissions and "qemu-system" in m.path]
            return b"".join(memory.read(m.start, m.end - m.start) for m in own)

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream
            stream.close()


class FakeDomain:
    """A domain whose state is a file: 'running', 'paused user', 'paused migration'."""

    def __init__(self, folder: Path, name: str, uuid_: str) -> None:
        self.name = name
        self.uuid = uuid_
        self.file = folder / f"{name}.state"
        self.moving = False
        if not self.file.exists():
            self.file.write_text("running")

    def state(self) -> DomainState:
        return DomainState(self.file.read_text().partition(" ")[0])

    def info(self) -> DomainInfo:
        return DomainInfo(self.state(), self.file.read_text().partition(" ")[2], 1, 0, 0, 0.0)

    def job(self) -> object | None:
        return object() if self.moving else None

    def suspend(self) -> None:
        self._become("paused user")

    def _become(self, text: str) -> None:
        """In one step, since the caller may be killed at any moment."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.file)

    def resume(self) -> None:
        if self.file.with_suffix(".stuck").exists():
            raise EffectError(f"resume of {self.name}: it does not")
        self._become("running")


class FakeHost:
    """A host with these domains."""

    uri = "fake:///system"
    driver = "QEMU"

    def __init__(self, domains: list[FakeDomain]) -> None:
        self._domains = domains

    def domains(self) -> list[FakeDomain]:
        return self._domains

    def domain(self, name: str) -> FakeDomain:
        for domain in self._domains:
            if name in (domain.name, domain.uuid):
                return domain
        raise NotFoundError(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass


@dataclass
class World:
    """Two running guests, one that an operator had paused, and a patch for their process."""

    targets: list[Target]
    domains: list[FakeDomain]
    host: FakeHost
    patch: Path

    def hotfixes(self, hook: Callable[[str], None] | None = None) -> Hotfixes:
        return Hotfixes(lambda: self.host, hook=hook, allow_unsigned=True)  # type: ignore[arg-type,return-value]

    def answers(self) -> set[int]:
        return {t.ask()[0] for t in self.targets}

    def code(self) -> list[bytes]:
        return [t.code() for t in self.targets]

    def states(self) -> list[str]:
        return [d.file.read_text() for d in self.domains]


def patch_text(binary: Path, *, patch_id: str = "answer", straddling: bool = True, context: int = 8) -> str:
    """A patch of two edits: the constant of answer(), and the one of straddle()."""
    file = read_binary(binary)
    edits = []
    wanted = [("answer", OLD, NEW), ("straddle", 0x01020304, 0x0A0B0C0D)]
    for symbol, old, new in wanted if straddling else wanted[:1]:
        address = file.symbol(symbol)
        segment, data = next((s, d) for s, d in file.code() if s.holds(address, 16))
        at = data.index(old.to_bytes(4, "little"), address - segment.address)
        begin = at - context
        edits.append(
            f'[[edits]]\naddress = "{segment.address + begin:#x}"\n'
            f'expected = "{data[begin : at + 4 + context].hex(" ")}"\noffset = {context}\n'
            f'replacement = "{new.to_bytes(4, "little").hex(" ")}"\n'
        )
    head = f'id = "{patch_id}"\ntitle = "another answer"\ntarget = "qemu"\nbuild_ids = ["{file.build_id}"]\n'
    return head + "\n".join(edits)


def raising(step: str, error: BaseException) -> Callable[[str], None]:
    """A hook that raises before the n-th time of a step: 'write:2'."""
    wanted, _, number = step.partition(":")
    left = int(number or "1")

    def hook(name: str) -> None:
        nonlocal left
        left -= name == wanted
        if name == wanted and left == 0:
            raise error

    return hook
