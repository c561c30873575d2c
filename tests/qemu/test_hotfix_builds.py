"""Patches made from two builds, in running processes: what these do then, and that a revert gives every byte back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hotfix_builds import Server, answers, build, hotfixes
from vmkit.hypervisor.host import Host


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
@pytest.mark.parametrize("kind", ["-O0", "-O1", "-O2", "-Os", "-fixed"])
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
        assert sum("not in the patch" in n for n in made.notes) == 5
        host_of.revert("one")
        assert server.code() == code
    finally:
        server.stop()
