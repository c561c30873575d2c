"""What preflight makes of clocks, bridges, huge pages, CPUs and of what QEMU itself refuses."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.test_migrate_preflight import DATA, host, sighting
from vmkit.errors import UnreachableError
from vmkit.hypervisor.storage import VolumeFacts
from vmkit.migrate import around
from vmkit.migrate.around import Around, look_around
from vmkit.migrate.facts import Presence, TargetFacts, parse_guest
from vmkit.migrate.files import GuestFile
from vmkit.migrate.plan import Request, make_plan
from vmkit.migrate.preflight import Case, Finding, Level, judge
from vmkit.system.shell import Shell


@pytest.fixture
def case() -> Case:
    guest = parse_guest((DATA / "guest-tcg.xml").read_text(), sighting())
    return Case(
        guest, host(1), host(2), TargetFacts(None, None, {f.path: Presence.SAME for f in guest.files}, None, None)
    )


def seen(case: Case, check: str, **facts: Any) -> list[Finding]:
    meeting = replace(case.meeting, around=Around(**facts))
    return [f for f in judge(replace(case, meeting=meeting)).findings if f.check == check]


@pytest.mark.parametrize(
    ("apart", "error", "level", "text"),
    [
        (None, 0.0, Level.OK, "not compared"),
        (0.3, 0.4, Level.OK, "0.3 s apart (to within 0.4 s)"),
        (2.5, 1.0, Level.OK, "2.5 s apart"),  # it may all be the look's own time
        (37.0, 1.0, Level.WARNING, "37.0 s ahead of"),
        (-3600.0, 1.0, Level.WARNING, "3600.0 s behind"),
    ],
)
def test_clocks(case: Case, apart: float | None, error: float, level: Level, text: str) -> None:
    (found,) = seen(case, "clock", apart=apart, apart_error=error)
    assert found.level is level
    assert text in found.text
    assert (found.fix is not None) == (level is Level.WARNING)


@pytest.mark.parametrize(
    ("bridges", "level"), [((), Level.WARNING), ((("br7", True),), Level.OK), ((("br7", False),), Level.REFUSED)]
)
def test_bridges(case: Case, bridges: tuple[tuple[str, bool], ...], level: Level) -> None:
    bridged = replace(case, guest=replace(case.guest, networks=(), bridges=("br7",)))
    (found,) = seen(bridged, "network", bridges=bridges)
    assert found.level is level


@pytest.mark.parametrize(
    ("pages", "level"),
    [
        (None, Level.WARNING),
        ({2**21: 96}, Level.OK),  # 192 MiB
        ({2**21: 95}, Level.REFUSED),
        ({2**21: 0, 2**30: 1}, Level.OK),
    ],
)
def test_huge_pages(case: Case, pages: dict[int, int] | None, level: Level) -> None:
    huge = replace(case, guest=replace(case.guest, hugepages=True))
    memory, found = seen(huge, "room", pages=pages)
    assert "free memory" in memory.text
    assert found.level is level


def test_what_qemu_itself_refuses(case: Case) -> None:
    blocked = replace(case, guest=replace(case.guest, blocked=("9p mount is active",)))
    (found,) = judge(blocked).refused
    assert (found.check, found.fix is not None) == ("blocked", True)
    assert "9p mount is active" in found.text


@pytest.mark.parametrize(
    ("lack", "common", "fix"),
    [
        (
            "Host CPU does not provide required features: avx2, bmi1",
            "EPYC",
            "<feature policy='disable' name='avx2'/> <",
        ),
        ("Host CPU does not provide required features: a, b, c, d, e", "EPYC", "the CPU model EPYC, which both hosts"),
        ("the CPU is incompatible with the host", "", "a CPU model that both hosts have and restart it"),
    ],
)
def test_the_smallest_fix_of_a_cpu(case: Case, lack: str, common: str, fix: str) -> None:
    meeting = replace(case.meeting, cpu_lack=lack, cpu_common=common)
    (found,) = judge(replace(case, meeting=meeting)).refused
    assert found.check == "cpu"
    assert fix in str(found.fix)


def test_the_plan_says_what_would_mend_it(case: Case) -> None:
    late = replace(case, meeting=replace(case.meeting, around=Around(apart=60.0)))
    plan = make_plan(Request("web1", case.target.uri), late, judge(late))
    (choice,) = (c for c in plan.choices if c.subject == "check clock")
    assert (choice.value, choice.reason.endswith("(have both set by NTP: chronyc tracking)")) == ("warning", True)


# -- looking


def hosts() -> tuple[Any, Any]:
    return cast("Any", SimpleNamespace(uri="qemu+ssh://h1/system")), cast(
        "Any", SimpleNamespace(uri="qemu+ssh://h2/system")
    )


def test_a_look_by_shell(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def run(self: Shell, script: str, *, timeout: float) -> Any:
        asked.append(script)
        ahead = 100.0 if self.where == "h2" else 40.0
        return SimpleNamespace(stdout=f"{around.time.time() + ahead}\nbr0\n")

    monkeypatch.setattr(Shell, "run_script", run)
    found = look_around(*hosts(), replace(case.guest, bridges=("br0", "x; reboot")))
    assert found.apart == pytest.approx(60.0, abs=5.0)
    assert found.bridges == (("br0", True), ("x; reboot", False))
    assert "'x; reboot'" in "".join(asked)  # a name is one word to the shell
    assert found.pages is None


def test_hosts_without_a_shell(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_given: Any, **_named: Any) -> Any:
        raise UnreachableError("no")

    monkeypatch.setattr(Shell, "run_script", fail)
    assert look_around(*hosts(), case.guest) == Around()


@pytest.mark.parametrize(
    ("driver", "free", "level", "text"),
    [
        ("QEMU", 2**40, Level.OK, "is copied to the target while the guest runs: 1M of 1G in use"),
        ("Xen", 2**40, Level.REFUSED, "Xen copies no disks"),
        ("QEMU", 2**20 - 1, Level.OK, "is copied"),
    ],
)
def test_a_disk_that_the_target_lacks(case: Case, driver: str, free: int, level: Level, text: str) -> None:
    path = "/srv/w-0.qcow2"
    disk = GuestFile(path, "disk", device="vda", format="qcow2", own=True)
    volume = VolumeFacts("srv", "w-0.qcow2", "qcow2", 2**30, 2**20, 2**20)
    meeting = replace(case.meeting, files={path: Presence.ABSENT}, volumes={path: volume}, pool_free={"/srv": free})
    sides = {"source": replace(case.source, driver=driver), "target": replace(case.target, driver=driver)}
    report = judge(replace(case, guest=replace(case.guest, files=(disk,)), meeting=meeting, **sides))
    (found,) = (f for f in report.findings if f.check == "disk")
    assert (found.level, text in found.text) == (level, True)
    room = [f.level for f in report.findings if f.check == "room"]
    assert room == [Level.OK if free > 2**30 else Level.REFUSED, Level.OK]
