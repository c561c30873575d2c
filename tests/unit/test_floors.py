"""The floors of the house: a module imports only from below its own floor, or from its own folder.

The tables here are the rule; the picture in the README's architecture section shows the same.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "vmkit"

GROUND = -1
FLOORS = {
    "errors": GROUND,
    "values": GROUND,
    "progress": GROUND,
    "plan": GROUND,
    "system": 0,
    "hypervisor": 0,
    "image": 1,
    "device": 1,
    "host": 1,
    "network": 1,
    "plotting": 1,
    "vm": 2,
    "migrate": 3,
    "hotfix": 3,
    "lab": 3,
    "bench": 3,
    "fleet": 4,
    "client": 5,
    "recovery": 4,
    "ecs": 5,
    "cli": 6,
    "__main__": 7,
}
"""Folder or module of vmkit/ -> its floor. A new one is entered here first."""

KEPT_TO = {
    "libvirt": {"hypervisor"},
    "libvirt_qemu": {"hypervisor"},
    "subprocess": {"system"},
    "socket": {"system"},
    "ctypes": {"system"},
    "pyroute2": {"system"},
    "ptrace": {"system"},
    "paramiko": {"system"},
}
"""Module -> the only folders that may import it."""

HEAVY = {
    "capstone",
    "pycdlib",
    "cryptography",
    "rich",
    "paramiko",
    "pyroute2",
    "elftools",
    "msgspec",
    "yaml",
    "libvirt",
    "libvirt_qemu",
}
"""What `vmkit --help` must not load."""


@dataclass(frozen=True)
class Import:
    """One import statement: where it stands, what it names, and whether it runs when its module is loaded."""

    file: Path
    line: int
    module: str
    at_load: bool
    typing_only: bool

    @property
    def where(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(file: Path) -> str:
    """The folder or module directly under vmkit/; '' for vmkit/__init__.py."""
    first = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def is_typing_guard(node: ast.AST) -> bool:
    if not isinstance(node, ast.If):
        return False
    test = node.test
    return (test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")) == "TYPE_CHECKING"


def imports_of(file: Path) -> Iterator[Import]:
    def walk(node: ast.AST, at_load: bool, typing_only: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.Import(names=names):
                    for alias in names:
                        yield Import(file, child.lineno, alias.name, at_load, typing_only)
                case ast.ImportFrom(module=module, names=names, level=0):
                    yield Import(file, child.lineno, str(module), at_load, typing_only)
                    for alias in names if module == "vmkit" else ():
                        yield Import(file, child.lineno, f"vmkit.{alias.name}", at_load, typing_only)
                case ast.ImportFrom():
                    pytest.fail(f"{file}:{child.lineno}: relative imports hide their floor; write the full name")
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                    yield from walk(child, False, typing_only)
                case ast.If() if is_typing_guard(child):
                    yield from walk(child, False, True)
                case _:
                    yield from walk(child, at_load, typing_only)

    yield from walk(ast.parse(file.read_text()), True, False)


def floor_of(part: str) -> int:
    return max(FLOORS.values()) if part == "" else FLOORS[part]


def test_every_part_has_a_floor() -> None:
    assert {part_of(f) for f in modules()} - {""} <= FLOORS.keys()


def test_imports_go_down() -> None:
    wrong = []
    for file in modules():
        mine = part_of(file)
        for found in imports_of(file):
            parts = found.module.split(".")
            if parts[0] != "vmkit" or len(parts) == 1:
                continue
            theirs = parts[1]
            if theirs not in FLOORS or theirs == mine:
                continue
            if floor_of(theirs) >= floor_of(mine) and not (floor_of(mine) == GROUND == floor_of(theirs)):
                wrong.append(f"{found.where}: {mine or 'vmkit'} may not import {found.module}")
    assert not wrong, "\n".join(wrong)


def test_each_library_stays_where_it_belongs() -> None:
    wrong = []
    for file in modules():
        for found in imports_of(file):
            allowed = KEPT_TO.get(found.module.split(".")[0])
            if allowed is not None and part_of(file) not in allowed:
                wrong.append(f"{found.where}: only {'/, '.join(sorted(allowed))}/ may import {found.module}")
    assert not wrong, "\n".join(wrong)


def loaded_by(module: str, seen: dict[str, str], via: str = "") -> None:
    """Follow the imports that run when `module` is loaded, within vmkit."""
    file = PACKAGE.parent / Path(*module.split("."))
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    if module in seen or not file.exists():
        return
    seen[module] = via
    for parent in range(1, module.count(".") + 1):
        loaded_by(".".join(module.split(".")[:parent]), seen, module)
    for found in imports_of(file):
        if found.at_load and found.module.startswith("vmkit"):
            loaded_by(found.module, seen, module)


def test_help_loads_nothing_heavy() -> None:
    seen: dict[str, str] = {}
    loaded_by("vmkit.cli.main", seen)
    assert "vmkit.errors" in seen
    wrong = []
    for module in seen:
        base = PACKAGE.parent / Path(*module.split("."))
        file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        wrong += [
            f"{i.where}: {i.module} at load time ({module} is loaded by {seen[module]})"
            for i in imports_of(file)
            if i.at_load and i.module.split(".")[0] in HEAVY
        ]
    assert not wrong, "\n".join(wrong)


def test_nothing_prints_or_exits_outside_the_command_line() -> None:
    wrong = []
    for file in modules():
        if part_of(file) == "cli":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name in ("print", "exit", "quit", "sys.exit", "breakpoint"):
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}: {name}()")
    assert not wrong, "\n".join(wrong)


def test_the_readme_shows_every_floor() -> None:
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("## Architecture")[2].partition("\n## ")[0]
    for part in sorted({part_of(f) for f in modules()} - {""}):
        if (PACKAGE / part).is_dir():
            line = next((line for line in section.splitlines() if line.strip().startswith(f"{part}/")), None)
            assert line, f"the picture in README.md's architecture section lacks {part}/"
            number = f"floor {FLOORS[part]}"
            assert number in line, f"README.md: '{line.strip()}' should say {number}"
