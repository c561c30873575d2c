"""Judging the race of the probe guests, and when a verdict still holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkit.host import cache
from vmkit.host.cache import Boot, same_boot
from vmkit.host.probe import _capabilities, _xml
from vmkit.host.verdict import ALONE_DEADLINE, PROBE_DEADLINE, KvmVerdict, Runner, judge, patience
from vmkit.image import micro

TCG = Runner(age=2.6, booted=2.6)


def test_open_while_kvm_may_still_win() -> None:
    assert judge(Runner(0.5), Runner(0.7), 0.7) is None
    assert judge(Runner(4.0), Runner(4.2, 2.6), 4.2) is None
    assert judge(Runner(30.0), Runner(30.2), 30.2) is None


def test_kvm_boots() -> None:
    verdict = judge(Runner(0.9, booted=0.8), Runner(1.0), 1.0)
    assert verdict == KvmVerdict(True, "a probe guest booted on KVM in 0.8 s", 1.0)
    slower = judge(Runner(5.0, booted=3.0), TCG, 5.0)
    assert slower
    assert slower.works
    assert "TCG took 2.6 s" in slower.reason


def test_kvm_does_not_come_up_in_time() -> None:
    verdict = judge(Runner(5.3), Runner(5.5, 2.6), 5.5)
    assert verdict == KvmVerdict(False, "probe guest did not boot on /dev/kvm within 5.3 s (TCG took 2.6 s)", 5.5)


def test_kvm_ends_without_a_line_or_does_not_start() -> None:
    verdict = judge(Runner(0.2, failed="start: no permission"), Runner(0.2), 0.3)
    assert verdict
    assert not verdict.works
    assert "no permission" in verdict.reason


def test_without_tcg_to_compare_with_kvm_has_a_deadline_of_its_own() -> None:
    broken = Runner(1.0, failed="no TCG in this QEMU")
    assert judge(Runner(ALONE_DEADLINE - 1), broken, 59.0) is None
    verdict = judge(Runner(ALONE_DEADLINE), broken, 60.0)
    assert verdict
    assert not verdict.works


def test_a_host_on_which_everything_is_slow_gets_its_time() -> None:
    slow = Runner(PROBE_DEADLINE - 1)
    assert judge(slow, slow, 179.0) is None
    late = judge(Runner(100.0, booted=99.0), Runner(100.0), 100.0)
    assert late
    assert late.works
    never = judge(Runner(PROBE_DEADLINE), Runner(PROBE_DEADLINE), 180.0)
    assert never
    assert not never.works


@given(tcg=st.floats(0.1, 50), kvm=st.floats(0.1, 59))
def test_the_race_always_ends_and_a_boot_in_time_wins(tcg: float, kvm: float) -> None:
    """Looked at every 0.1 s, both guests started together."""
    for tick in range(1, 1801):
        now = tick / 10
        verdict = judge(Runner(now, kvm if now >= kvm else None), Runner(now, tcg if now >= tcg else None), now)
        if verdict:
            break
    else:
        pytest.fail("no verdict within 180 s")
    if kvm < patience(tcg) - 0.2:
        assert verdict.works
    if kvm > max(patience(tcg), tcg) + 0.2 and kvm > tcg + 0.2:
        assert not verdict.works


LOCAL = Boot("b1", 0.0, 1000.0, "10.0.2")
REMOTE = Boot("", 5000.0, 1000.0, "10.0.2")


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        (LOCAL, Boot("b1", 0.0, 9e9, "10.0.2"), True),
        (LOCAL, Boot("b2", 0.0, 1001.0, "10.0.2"), False),
        (LOCAL, Boot("b1", 0.0, 1001.0, "10.0.3"), False),
        (LOCAL, Boot("", 0.0, 1001.0, "10.0.2"), False),
        (REMOTE, Boot("", 5000.0, 1000.0, "10.0.2"), True),
        (REMOTE, Boot("", 105000.0, 101000.0, "10.0.2"), True),
        (REMOTE, Boot("", 96000.0, 101000.0, "10.0.2"), True),  # 9 % of the time was stolen
        (REMOTE, Boot("", 60000.0, 101000.0, "10.0.2"), False),
        (REMOTE, Boot("", 4999.0, 1000.0, "10.0.2"), False),
        (REMOTE, Boot("", 40.0, 1060.0, "10.0.2"), False),
        (REMOTE, Boot("", 5000.0, 900.0, "10.0.2"), False),
    ],
)
def test_same_boot(before: Boot, now: Boot, same: bool) -> None:
    assert same_boot(before, now) is same


def test_verdicts_are_kept_for_each_host_and_boot(home: Path) -> None:
    no, yes = KvmVerdict(False, "no", 5.0), KvmVerdict(True, "yes", 1.0)
    assert cache.recall("u1", LOCAL) is None
    cache.remember("u1", LOCAL, no)
    cache.remember("u2", REMOTE, yes)
    assert cache.recall("u1", LOCAL) == no
    assert cache.recall("u2", REMOTE) == yes
    assert cache.recall("u1", Boot("b2", 0.0, 1.0, "10.0.2")) is None
    cache.remember("u1", LOCAL, yes)
    assert cache.recall("u1", LOCAL) == yes


@pytest.mark.parametrize("text", ["", "[]", '{"u1": 3}', '{"u1": {"boot": {}, "verdict": {}}}', "\xff"])
def test_a_damaged_cache_counts_as_none(home: Path, text: str) -> None:
    (home / "cache").mkdir()
    (home / "cache/kvm-probe.json").write_text(text, encoding="latin-1")
    assert cache.recall("u1", LOCAL) is None
    cache.remember("u1", LOCAL, KvmVerdict(True, "yes", 1.0))
    assert cache.recall("u1", LOCAL)


CAPABILITIES = """<capabilities><host><uuid>11111111-2222-3333-4444-555555555555</uuid></host>
<guest><os_type>hvm</os_type><arch name='i686'><domain type='kvm'/></arch></guest>
<guest><os_type>hvm</os_type><arch name='x86_64'><domain type='qemu'/>{}</arch></guest></capabilities>"""


def test_capabilities_are_read_for_the_architecture_of_the_probe() -> None:
    uuid = "11111111-2222-3333-4444-555555555555"
    assert _capabilities(CAPABILITIES.format("<domain type='kvm'/>")) == (uuid, True)
    assert _capabilities(CAPABILITIES.format("")) == (uuid, False)
    assert _capabilities("<capabilities/>") == ("", False)


def test_paths_reach_the_domain_as_text() -> None:
    xml = _xml("kvm", "/pool/<k>&", "/pool/i")
    assert "<kernel>/pool/&lt;k&gt;&amp;</kernel>" in xml
    assert "vmkit.probe=1" in xml
    assert xml.startswith('<domain type="kvm">')


def test_the_probe_boots_as_the_image_does() -> None:
    from vmkit.host import probe

    assert set(probe.CMDLINE.split()) - set(micro.CMDLINE.split()) == {"vmkit.probe=1"}
    init = (Path(__file__).parents[2] / "templates/micro/init").read_text()
    assert f'echo "{probe.MARKER.decode()}"' in init
    assert f'echo "{micro.MARKER}"' in init
