"""Patches made from two builds, in running processes: what these do then, and that a revert gives every byte back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hotfix_builds import Server, answers, build, hotfixes
from vmkit.errors import EffectError, RefusedError
from vmkit.hotfix.api import Hotfixes
from vmkit.hotfix.unwind import Unwinder
from vmkit.hypervisor.host import Host
from vmkit.system.elf import read_binary
from vmkit.system.process import ProcessId
from vmkit.system.procmem import ProcessMemory, mappings
from vmkit.system.ptrace import stopped


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("builds")
    made = {}
    for opt in ("-O0", "-O1", "-O2", "-Os"):
        made[f"old{opt}"] = build(folder, f"old{opt}", opt)
        made[f"new{opt}"] = build(folder, f"new{opt}", opt, "-DNEW")
    made["old-fixed"] = build(folder, "old-fixed", "-no-pie", "-fno-pie")
    made["new-fixed"] = build(folder, "new-fixed", "-no-pie", "-fno-pie", "-DNEW")
    made["old-bare"] = build(folder, "old-bare", strip=True)
    made["new-bare"] = build(folder, "new-bare", "-DNEW", strip=True)
    return made


@pytest.fixture
def expected(builds: dict[str, Path]) -> Iterator[list[str]]:
    """What the new build itself says."""
    server = Server(builds["new-O2"])
    try:
        yield answers(server)
    finally:
        server.stop()


@pytest.mark.parametrize("out_of_line", [False, True], ids=["in place where it fits", "out of line"])
@pytest.mark.parametrize("kind", ["-O0", "-O1", "-O2", "-Os", "-fixed", "-bare"])
def test_an_old_process_does_what_the_new_build_does(
    home: Path, builds: dict[str, Path], expected: list[str], tmp_path: Path, kind: str, out_of_line: bool
) -> None:
    server = Server(builds[f"old{kind}"])
    try:
        fixes = hotfixes(tmp_path, server)
        before, code, count = answers(server), server.code(), server.count()
        assert before != expected
        made = fixes.make_from_builds(
            builds[f"old{kind}"], builds[f"new{kind}"], id="fix", out_of_line=out_of_line, path=tmp_path / "fix.toml"
        )
        assert any("jumps there" in n for n in made.notes)
        assert any("in place" in n for n in made.notes) is not out_of_line
        assert fixes.apply(tmp_path / "fix.toml").state == "applied"
        assert answers(server) == expected
        assert fixes.apply("fix").state == "already applied"
        assert fixes.revert("fix").state == "reverted"
        assert server.code() == code
        assert answers(server) == before
        assert server.count() > count
        assert fixes.apply("fix").state == "applied"
        assert answers(server) == expected
    finally:
        server.stop()


def test_one_function_alone(
    home: Path, builds: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(builds["old-O2"])
    host_of = hotfixes(tmp_path, server)
    monkeypatch.setattr(Host, "connect", lambda _uri: host_of)
    try:
        assert server.tell("v") == "1"
        made = host_of.make_from_builds(
            builds["old-O2"], builds["new-O2"], id="one", functions=["version"], path=tmp_path / "one.toml"
        )
        code = server.code()
        report = host_of.apply(tmp_path / "one.toml")
        (write,) = report.processes[0].writes
        assert (write.old, write.new) == ("b8 01 00 00 00", "b8 02 00 00 00")
        assert server.tell("v") == "2"
        assert sum("not in the patch" in n for n in made.notes) == 6
        host_of.revert("one")
        assert server.code() == code
    finally:
        server.stop()


def test_the_functions_that_really_changed(builds: dict[str, Path]) -> None:
    fixes = Hotfixes(lambda: pytest.fail("a host was asked"))
    changed = {"version", "quota", "store", "weigh", "waits"}
    for kind in ("-O0", "-O1", "-O2", "-Os", "-fixed"):
        report = fixes.diff(builds[f"old{kind}"], builds[f"new{kind}"])
        found = {c.name: c.kind for c in report.changed if ".cold" not in c.name}
        assert {n for n, k in found.items() if k in ("changed", "constants")} == changed, kind
        assert {n for n, k in found.items() if k == "new"} == {"checked", "unrelated"}, kind
        assert len(found) == 7
        assert found["version"] == "constants"
    # Without symbols it is the same functions, by their addresses.
    binary = read_binary(builds["old-O2"])
    report = fixes.diff(builds["old-bare"], builds["new-bare"])
    old = {int(c.old, 16) for c in report.changed if c.kind in ("changed", "constants")}
    assert old == {binary.symbol(n) for n in changed}
    assert [c.kind for c in report.changed].count("new") == 2
    assert report.stripped
    (one,) = fixes.diff(builds["old-O2"], builds["new-O2"], ["version"]).changed
    assert [(line.mark, line.old.partition("  ")[2], line.new.partition("  ")[2]) for line in one.lines] == [
        ("|", "mov eax, 1", "mov eax, 2"),
        (" ", "ret", "ret"),
    ]


REFUSED = {
    "a new global variable": (["-DGLOBAL"], [], "remember uses history, a global variable that the old build does not"),
    "a global of another size": (["-DRESIZED"], [], "limits, whose size changes from 16 to 24 bytes"),
    "a global of another value": (["-DREVALUED"], [], "limits, whose initial value differs"),
    "an import": (["-DIMPORT"], [], "getpriority, which the old build does not import"),
    "a structure of another layout": (["-DLAYOUT"], [], "offsets from pointers differ"),
    "more than there is room for": (["-DHUGE"], [], "no room for remember: .* bytes are needed"),
    "one function of several": (["-DNEW"], ["quota"], None),
    "a function that does not differ": (["-DNEW"], ["scale"], "does the same in both builds"),
    "a function that is nowhere": (["-DNEW"], ["nothing"], "is in neither build"),
    "a function that is new": (["-DNEW"], ["unrelated"], "in the new build only"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_patched_is_refused_with_the_reason(builds: dict[str, Path], tmp_path: Path, name: str) -> None:
    flags, functions, words = REFUSED[name]
    new = build(tmp_path, "other", *flags)
    fixes = Hotfixes(lambda: pytest.fail("a host was asked"))
    if words is None:
        assert fixes.make_from_builds(builds["old-O2"], new, id="x", functions=functions).notes
        return
    with pytest.raises(RefusedError, match=words):
        fixes.make_from_builds(builds["old-O2"], new, id="x", functions=functions, path=tmp_path / "x.toml")
    assert not (tmp_path / "x.toml").exists()


def test_a_thread_that_will_return_to_the_old_body(home: Path, builds: dict[str, Path], tmp_path: Path) -> None:
    """Its next instruction is in the C library, so only its stack tells."""
    server = Server(builds["old-O2"], "stay")
    try:
        fixes = hotfixes(tmp_path, server)
        before, code = answers(server), server.code()
        for out_of_line in (False, True):
            fixes.make_from_builds(
                *(builds["old-O2"], builds["new-O2"]),
                id=f"waits{out_of_line:d}",
                functions=["waits"],
                out_of_line=out_of_line,
                path=tmp_path / f"waits{out_of_line:d}.toml",
            )
        assert fixes.plan(tmp_path / "waits0.toml").steps
        with pytest.raises(EffectError, match=r"thread \d+ of .* will return to 0x.*every guest runs again"):
            fixes.apply(tmp_path / "waits0.toml", max_pause=1.0)
        assert server.code() == code
        assert answers(server) == before
        # With the new body elsewhere the old one may be finished by those who are in it.
        assert fixes.apply(tmp_path / "waits1.toml").state == "applied"
        assert answers(server) != before
        assert fixes.revert("waits1").state == "reverted"
        assert server.code() == code
        assert answers(server) == before
    finally:
        server.stop()


def test_the_pause_budget(home: Path, builds: dict[str, Path], tmp_path: Path) -> None:
    server = Server(builds["old-O2"])
    try:
        path = tmp_path / "one.toml"
        hotfixes(tmp_path, server).make_from_builds(
            builds["old-O2"], builds["new-O2"], id="one", functions=["version"], path=path
        )
        code = server.code()
        slow = hotfixes(tmp_path, server, lambda step: time.sleep(0.3 if step == "compare" else 0))
        with pytest.raises(EffectError, match=r"stood for 0\.2 s and nothing was written yet; every byte is as"):
            slow.apply(path, max_pause=0.2)
        assert server.code() == code
        assert (tmp_path / "vm0.state").read_text() == "running"
        assert slow.apply(path, max_pause=60.0).state == "applied"
    finally:
        server.stop()


def test_a_pointer_on_a_stack_that_no_frame_returns_to_is_in_nobodys_way(
    home: Path, builds: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(builds["old-O2"], "stay")
    try:
        fixes = hotfixes(tmp_path, server)
        path = tmp_path / "one.toml"
        fixes.make_from_builds(builds["old-O2"], builds["new-O2"], id="one", functions=["version"], path=path)
        with monkeypatch.context() as blind:
            blind.setattr(Unwinder, "return_addresses", lambda *_: None)
            with pytest.raises(EffectError, match="will return to"):
                fixes.apply(path, max_pause=0.5)
        assert server.tell("v") == "1"
        assert fixes.apply(path, max_pause=10.0).state == "applied"
        assert server.tell("v") == "2"
    finally:
        server.stop()


def test_stacks_are_walked_to_their_end(builds: dict[str, Path]) -> None:
    server = Server(builds["old-O2"], "stay")
    process = ProcessId.of(server.process.pid)
    assert process
    try:
        unwinder = Unwinder(process.pid)
        with ProcessMemory(process) as memory, stopped(process.pid) as held:
            walks = [unwinder.return_addresses(r, memory.read) for r in held.registers().values()]
        own = [m for m in mappings(process.pid) if m.path == str(builds["old-O2"])]
        assert len(walks) == 4
        assert all(walk for walk in walks)
        base = own[0].start
        binary = read_binary(builds["old-O2"])
        start = base + binary.symbol("waits")
        within = [a for walk in walks for a in walk or () if start <= a < start + 200]
        assert len(within) == 2  # waits() and wait_long(), which follows it
    finally:
        server.stop()
