"""Predicting a migration, and what the record of migrations tells."""

from __future__ import annotations

import shutil
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.test_migrate_preflight import DATA, host, sighting
from vmkit.errors import SpecError, UnsupportedError
from vmkit.hypervisor.dirty import InUse, Sample
from vmkit.migrate import record
from vmkit.migrate.control import Terms
from vmkit.migrate.facts import parse_guest
from vmkit.migrate.measure import curve, put_together
from vmkit.migrate.modes import Mode, check_wish, ways
from vmkit.migrate.outlook import judged
from vmkit.migrate.plan import Request
from vmkit.migrate.predict import Measured, Point, Range, dirtied, expected, impossible, predict
from vmkit.migrate.record import Learned, Outcome
from vmkit.migrate.replay import load
from vmkit.migrate.traps import TRAPS, sprung
from vmkit.migrate.wish import Wish

MIB = 2**20
RUNS = Path(__file__).parents[1] / "data" / "migrate" / "runs"


def flat(value: float) -> Range:
    return Range(value, value, value)


def measured(*dirty: tuple[float, float], used: float = 180, bandwidth: float = 30, link: float = 300) -> Measured:
    points = tuple(Point(s, m * MIB) for s, m in dirty)
    return Measured(256 * MIB, flat(used * MIB), points, flat(bandwidth * MIB), flat(link * MIB))


TERMS = Terms(budget=0.3, deadline=120.0)
IDLE = measured((0.2, 0.0), (1.0, 0.0))
WRITER = measured((0.2, 2.0), (1.0, 10.0))  # 10 MiB/s, no end of its working set seen
OUTRUNS = measured((0.2, 100.0), (1.0, 100.0))  # 100 MiB over and over


def test_an_idle_guest() -> None:
    p = predict(IDLE, TERMS)[Mode.PRE_COPY]
    assert p.converges
    assert p.verdict == "yes"
    assert p.total.likely == pytest.approx(180 / 30 + 0.5, rel=0.1)
    assert p.bytes.likely == pytest.approx(180 * MIB, rel=0.05)
    assert p.downtime.likely < 0.1


def test_a_guest_that_converges_is_as_the_geometric_model_has_it() -> None:
    p = predict(replace(WRITER, dirty=(Point(10.0, 100 * MIB),)), TERMS)[Mode.PRE_COPY]
    ratio = 10 / 30
    assert p.converges
    assert p.total.likely == pytest.approx(180 / 30 / (1 - ratio) + 0.5, rel=0.15)


def test_a_guest_that_outruns_the_link() -> None:
    found = predict(OUTRUNS, TERMS)
    assert not found[Mode.PRE_COPY].converges
    assert found[Mode.PRE_COPY].verdict == "no"
    assert found[Mode.HYBRID].verdict == "yes"
    assert expected(found, TERMS).mode is Mode.PRE_COPY
    assert expected(found, replace(TERMS, post_copy=True)).mode is Mode.HYBRID
    stop = predict(OUTRUNS, replace(TERMS, budget=0.6))[Mode.PRE_COPY]  # 100 MiB over 300 MiB/s
    assert (stop.converges, stop.verdict) == (True, "yes")
    assert stop.downtime.likely == pytest.approx(100 / 300 + 0.06, rel=0.05)


def test_a_guest_that_could_not_be_watched_is_not_promised_anything() -> None:
    found = predict(measured(), TERMS)
    assert found[Mode.PRE_COPY].verdict == "unsure"
    assert "could not be measured" in found[Mode.PRE_COPY].why


def test_standing_still_all_the_while() -> None:
    p = predict(OUTRUNS, replace(TERMS, budget=10.0))[Mode.STOP_COPY]
    assert p.downtime.likely == pytest.approx(6.06, rel=0.02)
    assert p.verdict == "yes"


def test_what_cannot_be_done_in_time_is_known_beforehand() -> None:
    short = replace(TERMS, deadline=3.0)
    assert impossible(expected(predict(IDLE, short), short), short) is not None
    assert impossible(expected(predict(IDLE, TERMS), TERMS), TERMS) is None


@given(
    st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 200)), max_size=3, unique_by=lambda p: p[0]),
    st.floats(1, 250),
    st.floats(1, 500),
)
def test_ranges_are_ranges(points: list[tuple[float, float]], used: float, bandwidth: float) -> None:
    samples = [Sample(s, int(m * MIB), 1) for s, m in sorted(points)]
    m = replace(
        measured(used=used, bandwidth=bandwidth, link=bandwidth),
        dirty=curve(samples),
        bandwidth=Range(bandwidth * MIB * 0.5, bandwidth * MIB, bandwidth * MIB * 2),
    )
    for p in predict(m, TERMS).values():
        for r in (p.total, p.downtime, p.bytes):
            assert 0 <= r.low <= r.likely <= r.high
        assert p.verdict in ("yes", "no", "unsure")
        assert p.bytes.likely >= used * MIB * 0.99


def test_the_curve() -> None:
    points = curve([Sample(0.2, 20 * MIB, 1), Sample(1.0, 64 * MIB, 1)])
    assert dirtied(points, 0.1, 1e12) == pytest.approx(10 * MIB)
    assert dirtied(points, 1.0, 1e12) == pytest.approx(64 * MIB)
    assert dirtied(points, 3.0, 1e12, slope=0.0) == pytest.approx(64 * MIB)
    assert dirtied(points, 3.0, 70 * MIB) == 70 * MIB
    noisy = curve([Sample(0.2, 20 * MIB, 1), Sample(1.0, 18 * MIB, 1)])
    assert [p.bytes for p in noisy] == [20 * MIB, 20 * MIB]
    assert curve([]) == ()


def test_recorded_runs_say_whether_they_converge_as_predicted() -> None:
    for path in sorted(RUNS.glob("*.json")):
        recording = load(path)
        used = float(recording.outcome["first_pass"])
        carried = max(look.bandwidth for look in recording.looks)
        points = tuple(Point(s, size) for s, size in recording.terms.curve)
        link = float(recording.terms.link or carried)
        m = Measured(256 * MIB, flat(used), points, flat(carried), flat(max(link, carried)), flat(0.5))
        m = replace(m, extra=flat(recording.terms.extra))
        found = expected(predict(m, recording.terms), recording.terms)
        assert found.converges == (recording.outcome["result"] == "arrived"), path.name


# -- what is known beforehand


def test_what_was_measured_is_put_together() -> None:
    guest = parse_guest((DATA / "guest-tcg.xml").read_text(), sighting())
    use = InUse(resident=150 * MIB, unused=120 * MIB, available=180 * MIB)
    m = put_together(guest, use, (), "not asked", None, Learned())
    assert m.used.low <= m.used.likely <= m.used.high == 86 * MIB
    assert "assumed" in dict(m.sources)["bandwidth"]
    learned = Learned(bandwidth=flat(200 * MIB), link=flat(250 * MIB))
    limited = put_together(guest, use, (), "not asked", 50 * MIB, learned)
    assert limited.bandwidth.likely == 50 * MIB
    assert limited.link.likely == 250 * MIB
    outlook = judged(Request("a", "b"), ways(Mode.PRE_COPY, Wish(), guest, host(1), host(2)), limited, 0.3, None)
    assert outlook.terms.link is None
    assert set(outlook.found) == {Mode.PRE_COPY, Mode.STOP_COPY, Mode.POST_COPY, Mode.HYBRID}


# -- which techniques are open


def test_auto_takes_post_copy_only_where_a_broken_one_can_be_taken_up() -> None:
    guest = parse_guest((DATA / "guest-tcg.xml").read_text(), sighting())
    new, trapped = replace(host(1), libvirt=(11, 4, 0), userfaultfd=True), replace(host(2), userfaultfd=True)
    assert ways(Mode.AUTO, Wish(), guest, new, new).post_copy
    assert not ways(Mode.AUTO, Wish(), guest, new, trapped).post_copy
    assert not ways(Mode.AUTO, Wish(), guest, new, replace(new, userfaultfd=None)).post_copy
    assert not ways(Mode.AUTO, Wish(parallel=4), guest, new, new).post_copy  # QEMU 10.0 cannot do both
    assert not ways(Mode.AUTO, Wish(), replace(guest, paused=True), new, new).post_copy
    assert ways(Mode.HYBRID, Wish(), guest, new, trapped).post_copy


@pytest.mark.parametrize(
    ("wish", "change", "trap", "fatal"),
    [
        (Wish(post_copy=True), {}, "postcopy-resume-libvirt-11.2", False),
        (Wish(post_copy=True, parallel=2), {"libvirt": (11, 4, 0)}, "postcopy-multifd", True),
        (Wish(post_copy=True), {"libvirt": (11, 4, 0), "userfaultfd": False}, "postcopy-no-userfaultfd", True),
        (Wish(post_copy=True), {"libvirt": (11, 4, 0), "userfaultfd": None}, "postcopy-userfaultfd-unknown", False),
    ],
)
def test_traps_of_post_copy(wish: Wish, change: dict[str, object], trap: str, fatal: bool) -> None:
    guest = parse_guest((DATA / "guest-tcg.xml").read_text(), sighting())
    there = replace(host(2), **{"userfaultfd": True, **change})  # type: ignore[arg-type]
    (found,) = sprung(guest, replace(host(1), libvirt=there.libvirt), there, wish)
    assert (found.id, found.fatal) == (trap, fatal)
    assert sprung(guest, host(1), there, replace(wish, post_copy=False)) == []


@pytest.mark.parametrize(
    ("wish", "source", "target", "trap"),
    [
        (Wish(parallel=2), {}, {"hypervisor": (3, 1, 0)}, "parallel-old"),
        (Wish(parallel=2), {"libvirt": (5, 1, 0)}, {}, "parallel-old"),
        (Wish(parallel=2, compression="zstd"), {}, {"libvirt": (9, 3, 0)}, "parallel-compression-old"),
        (Wish(parallel=2, zero_copy=True), {"hypervisor": (7, 0, 0)}, {}, "zero-copy-old"),
        (Wish(parallel=2, zero_copy=True), {}, {"libvirt": (8, 4, 0)}, "zero-copy-old"),
        (Wish(parallel=2, zero_copy=True), {"uri": "qemu:///session"}, {}, "zero-copy-session"),
        (Wish(parallel=2, zero_copy=True), {"locks": False}, {}, "zero-copy-limit"),
    ],
)
def test_traps_of_options(wish: Wish, source: dict[str, object], target: dict[str, object], trap: str) -> None:
    guest = replace(parse_guest((DATA / "guest-tcg.xml").read_text(), sighting()), virt_type="kvm")
    here, there = replace(host(1), **source), replace(host(2), **target)  # type: ignore[arg-type]
    assert trap in [t.id for t in sprung(guest, here, there, wish) if t.fatal]
    assert trap not in [t.id for t in sprung(guest, host(1), host(2), wish)]
    assert sprung(guest, host(1), replace(host(2), hypervisor=(7, 0, 0)), replace(wish, compression="")) == [
        t for t in TRAPS if t.id == "qemu-older"
    ]


@pytest.mark.parametrize(
    ("mode", "wish"),
    [
        (Mode.AUTO, Wish(compression="zstd")),
        (Mode.AUTO, Wish(compression="xbzrle", parallel=2)),
        (Mode.AUTO, Wish(compression="gzip")),
        (Mode.AUTO, Wish(parallel=1)),
        (Mode.AUTO, Wish(zero_copy=True)),
        (Mode.AUTO, Wish(zero_copy=True, parallel=2, compression="zstd")),
        (Mode.STOP_COPY, Wish(auto_converge=True)),
    ],
)
def test_options_that_do_not_go_together(mode: Mode, wish: Wish) -> None:
    with pytest.raises(SpecError):
        check_wish(mode, wish, "QEMU")
    check_wish(Mode.AUTO, Wish(compression="zstd", parallel=2), "QEMU")
    with pytest.raises(UnsupportedError):
        check_wish(Mode.HYBRID, Wish(), "Xen")


# -- the record

ARRIVED = Outcome("arrived", "pre-copy", 2500, 2000, 100, None, 3, 200 * MIB, 90 * MIB, 0, 180 * MIB, False, 0.3, 120)


def test_the_record_is_appended_to_and_learned_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path))
    assert record.read() == []
    prediction = predict(IDLE, TERMS)[Mode.PRE_COPY]
    record.append("web1", "u", "qemu://a", "qemu://b", "auto", prediction, ARRIVED)
    record.append("web1", "u", "qemu://b", "qemu://a", "auto", None, replace(ARRIVED, total_ms=3000))
    with record.path().open("a") as f:
        f.write("half a li")
    lines = record.read()
    assert [li.outcome.total_ms for li in lines] == [2500, 3000]
    assert lines[0].predicted["total"] == asdict(prediction.total)
    learned = record.learn(lines, "u", "qemu://a", "qemu://b")
    assert learned.bandwidth == flat(90 * MIB)
    sending = 200 / 90
    assert learned.setup == Range(2.5 - sending, pytest.approx(2.75 - sending), 3.0 - sending)
    assert learned.used is not None
    assert learned.used.likely == 180 * MIB
    assert record.learn(lines, "u", "qemu://a", "qemu://c").bandwidth is None


def test_what_a_migration_takes_beside_the_sending_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 migrations with a limit of 32 MiB/s and a few without one, on a machine with five to ten times as much work as
    CPUs: most of what they took was the start of the target's QEMU, which libvirt counts to the transfer."""
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path))
    shutil.copy(DATA / "busy-machine.jsonl", record.path())
    lines = record.read()
    assert len(lines) == 20
    errors, without = [], []
    for i, line in enumerate(lines[3:], start=3):
        o, setup = line.outcome, record.learn(lines[:i], line.uuid, line.source, line.target).setup
        assert setup is not None
        sending = o.bytes_sent / o.bandwidth
        errors.append(abs(setup.likely + sending - o.total_ms / 1000) / (o.total_ms / 1000))
        without.append(abs(sending - o.transfer_ms / 1000) / (o.total_ms / 1000) if o.transfer_ms else 0.0)
    assert statistics.median(errors) < 0.15
    assert statistics.median(without) > 0.3


def test_how_good_predictions_have_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path))
    good = predict(IDLE, TERMS)[Mode.PRE_COPY]
    total = round(good.total.likely * 1000)
    right = replace(ARRIVED, total_ms=total, downtime_ms=round(good.downtime.likely * 1000))
    record.append("a", "u", "x", "y", "auto", good, right)
    record.append("a", "u", "x", "y", "auto", good, replace(right, total_ms=2 * total))
    bad = predict(OUTRUNS, TERMS)[Mode.PRE_COPY]
    record.append("a", "u", "x", "y", "auto", bad, replace(right, result="given up", downtime_ms=None))
    found = record.accuracy(record.read())
    assert (found.migrations, found.compared, found.verdicts) == (3, 3, 3)
    assert found.total_error == pytest.approx(25.0, abs=0.2)
    assert found.verdicts_right == 100.0
    assert record.accuracy([]) == record.Accuracy(0, 0)
