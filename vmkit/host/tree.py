"""A captured host: what templates/doctor.sh read of it, as paths and text. Everything that judges a host starts here.

The same text comes from this machine, from the far side of ssh, and from files that were captured elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from vmkit.errors import EffectError
from vmkit.system.shell import Shell
from vmkit.system.templates import template

SCRIPT: Final = "doctor.sh"
_BEGIN: Final = "F @uid\n"
DEADLINE: Final = 60.0
"""Seconds for one look at a host. It takes well under one where nothing is wrong."""
_NUMBER = re.compile(r"\s*(\d{1,18})", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What a host has no business sending to a terminal."""
_CPU_LIMIT: Final = 8192  # NR_CPUS of the largest distribution kernels


@dataclass(frozen=True, slots=True)
class Tree:
    """Files and folders of a host at one moment.

    Attributes:
        files: text by path; a path that begins with '@' is the answer of a program.
        folders: names by path.
        nodes: devices and sockets by path, each with what this user may do: 'rw', 'r-' or '--'.
        denied: what is there and cannot be read by this user.
        complete: the capture reached its end; otherwise what is missing is not known to be absent.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    nodes: Mapping[str, str] = field(default_factory=dict)
    denied: frozenset[str] = frozenset()
    complete: bool = True

    def text(self, path: str) -> str:
        """The file's text; '' where there is none."""
        return self.files.get(path, "")

    def line(self, path: str) -> str | None:
        """First line of the file, stripped; None where there is no file, or an empty one."""
        return next((s.strip() for s in self.text(path).splitlines()[:1] if s.strip()), None)

    def number(self, path: str) -> int | None:
        """The decimal number that the file begins with; None if it does not."""
        return integer(self.text(path))

    def names(self, path: str) -> tuple[str, ...]:
        """What is in the folder; nothing where there is none."""
        return self.folders.get(path, ())

    def has(self, path: str) -> bool | None:
        """Whether something is there; None where that is not known."""
        if path in self.files or path in self.folders or path in self.nodes or path in self.denied:
            return True
        return False if self.complete else None

    def listed(self, folder: str, name: str) -> bool | None:
        """Whether the folder holds the name; None where the folder could not be read."""
        if folder in self.folders:
            return name in self.folders[folder] or (False if self.complete else None)
        return None if folder in self.denied or not self.complete or not self._sees(folder) else False

    def _sees(self, path: str) -> bool:
        """Whether anything of the file system that the path is in was seen: a container may have no /sys."""
        top = f"/{path.split('/')[1]}/"
        return any(p.startswith(top) for p in (*self.files, *self.folders))

    def switch(self, path: str) -> bool | None:
        """A file that says Y or N, 1 or 0; None where it is not there or says something else."""
        return {"Y": True, "1": True, "N": False, "0": False}.get((self.line(path) or "")[:1].upper())

    def below(self, folder: str, suffix: str) -> tuple[str, ...]:
        """Paths of files below a folder that end so, sorted with numbers as numbers."""
        found = (p for p in self.files if p.startswith(folder) and p.endswith(suffix))
        return tuple(sorted(found, key=natural))


def parse(text: str) -> Tree:
    """Read what the script printed. Never raises: lines that make no sense are passed over."""
    files: dict[str, str] = {}
    folders: dict[str, tuple[str, ...]] = {}
    nodes: dict[str, str] = {}
    denied: set[str] = set()
    complete = False
    kind, path, lines = "", "", list[str]()

    def close() -> None:
        match kind:
            case "F":
                files[path] = "\n".join(lines)
            case "D":
                folders[path] = tuple(sorted((s for s in lines if s), key=natural))
            case "N":
                nodes[path] = lines[0].strip() if lines else "--"
            case "X":
                denied.add(path)

    for line in _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text).split("\n"):
        if line.startswith(" "):
            lines.append(line[1:])
        elif line[:2] in ("F ", "D ", "N ", "X ") and len(line) > 2:
            close()
            kind, path, lines = line[0], line[2:], []
        elif line.rstrip() == "E":
            complete = True
            break
    close()
    return Tree(files, folders, nodes, frozenset(denied), complete)


def capture(shell: Shell, *, brief: bool = False) -> str:
    """Read a host in one round trip. Nothing is written there.

    Args:
        shell: where it is read.
        brief: only what the plan of a VM depends on. The rest is then absent from a tree that calls itself complete.

    Raises:
        UnreachableError: it does not answer, or does not let us in.
        EffectError: it answers, and has no POSIX shell.
    """
    script = template(SCRIPT).read_text()
    done = shell.run_script(f"brief=yes\n{script}" if brief else script, timeout=DEADLINE)
    greeting, begin, rest = done.stdout.partition(_BEGIN)  # a login script there may have printed something first
    if not begin or (greeting and not greeting.endswith("\n")):
        tail = tuple((done.stderr.strip() or done.stdout.strip()).splitlines()[-4:])
        raise EffectError(
            f"{shell.where} did not run a shell script (status {done.status})",
            hint="see that the user's shell there is sh, bash or another that takes a POSIX script",
            details=tail,
        )
    return begin + rest


def integer(text: str | None) -> int | None:
    """The decimal number at the beginning of a text, of at most 18 digits."""
    match = _NUMBER.match(text or "")
    return int(match[1]) if match and not (text or "")[match.end() : match.end() + 1].isdigit() else None


def hexadecimal(text: str | None) -> int | None:
    """A hexadecimal number of at most 64 bits, with or without 0x."""
    word = (text or "").strip().removeprefix("0x")
    return int(word, 16) if re.fullmatch(r"[0-9A-Fa-f]{1,16}", word) else None


def cpu_list(text: str | None) -> tuple[int, ...]:
    """`0-3,8` as numbers (the kernel's cpulist format). What is not a CPU number below 8192 is left out."""
    found: set[int] = set()
    for part in (text or "").strip().split(","):
        first, _, last = part.partition("-")
        low, high = integer(first), integer(last or first)
        if low is not None and high is not None and low <= high < _CPU_LIMIT:
            found.update(range(low, high + 1))
    return tuple(sorted(found))


def pairs(text: str, separator: str = ":") -> dict[str, str]:
    """Lines of `key: value`, the first of each key."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, mark, value = line.partition(separator)
        if mark:
            found.setdefault(key.strip(), value.strip())
    return found


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key: runs of digits count as numbers."""
    return tuple((0, int(s[:18]), s) if s.isdecimal() else (1, 0, s) for s in re.split(r"(\d+)", text) if s)
