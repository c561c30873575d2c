"""Measuring: what the programs print is read, what is left out is said, figures become a table and a picture."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from vmkit.bench.layout import Facts, Guest, lay_out, spec, subnet
from vmkit.bench.picture import draw
from vmkit.bench.report import amount, percent, rows, summary
from vmkit.bench.workloads import WORKLOADS, chosen, parse_fio, parse_iperf, parse_stress, parse_sysbench
from vmkit.errors import SpecError
from vmkit.host import measured
from vmkit.host.measured import Area, Measured, Mode, Result, Skipped

DATA = Path(__file__).parents[1] / "data" / "bench"
NESTED_HOST = Facts(
    kvm=True,
    why_not_kvm="",
    paging="nested",
    module="kvm_amd",
    others=(),
    vhost=True,
    root=True,
    local=True,
    why_not_card="no network card here has virtual functions (SR-IOV)",
)
NO_KVM = Facts(
    kvm=False,
    why_not_kvm="libvirt offers no KVM here",
    paging=None,
    module=None,
    others=(),
    vhost=False,
    root=True,
    local=True,
)
EVERY = tuple(Mode)


def read(name: str) -> str:
    return (DATA / name).read_text()


def run_of(*results: Result, skipped: tuple[Skipped, ...] = ()) -> Measured:
    machine = {"cpu": "AMD EPYC", "cpus": "2", "kernel": "6.12", "qemu": "10.0.13", "virtual": "QEMU"}
    return Measured("2026-11-21T08:00:00+00:00", 5.0, machine, {"image": "Debian"}, results, skipped)


INTEGER = Result(Area.CPU, "integer", Mode.NATIVE, "", "events/s", (3000.0, 2900.0, 3100.0), 3000.0)
NESTED = Result(Area.CPU, "integer", Mode.NESTED, "kvm", "events/s", (2850.0, 2700.0, 3000.0), 3000.0)
SLOW = Result(Area.CPU, "integer", Mode.TCG, "tcg", "events/s", (120.0,), 3000.0)
READS = Result(Area.DISK, "random-read", Mode.EMULATED, "kvm", "IOPS", (1000.0,), 20000.0)


# ---- what the programs print


def test_sysbench() -> None:
    assert parse_sysbench("integer")(read("sysbench-cpu.txt")) == {"integer": pytest.approx(100, rel=1e3)}
    assert parse_sysbench("integer")("    events per second:  3113.01\n") == {"integer": 3113.01}


@pytest.mark.parametrize("stressor", ["null", "switch", "fault", "fork", "matrix"])
def test_stress_ng(stressor: str) -> None:
    text = read(f"stress-{stressor}.txt")
    found = parse_stress("x", stressor)(text)
    line = next(line for line in text.splitlines() if f"] {stressor}  " in line)
    assert found == {"x": float(line.split()[8])}
    assert found["x"] > 0


def test_stress_ng_before_its_lines_had_a_tag_of_their_own() -> None:
    line = "stress-ng: info:  [915] fork                 622      1.00      0.19      0.17       621.89        1741.17"
    assert parse_stress("processes", "fork")(line) == {"processes": 621.89}


def test_a_sample_in_which_nothing_was_completed_is_no_figure() -> None:
    line = "stress-ng: metrc: [2035] matrix                 0      4.43      0.05      3.68         0.00           0.00"
    with pytest.raises(SpecError, match="completed nothing"):
        parse_stress("tlb-misses", "matrix")(line)


def test_fio() -> None:
    found = parse_fio(read("fio.json"))
    body = json.loads(read("fio.json"))
    assert found["random-read"] == body["jobs"][0]["read"]["iops"]
    assert found["sequential-read"] == pytest.approx(body["jobs"][1]["read"]["bw_bytes"] / 2**20)
    assert parse_fio("fio: a warning\n" + read("fio.json")) == found


def test_iperf3() -> None:
    assert parse_iperf(read("iperf3.json"))["tcp-stream"] > 10
    with pytest.raises(SpecError, match="Connection refused"):
        parse_iperf(read("iperf3-refused.json"))


@pytest.mark.parametrize("parse", [w.parse for w in WORKLOADS])
@pytest.mark.parametrize("text", ["", "{}", "{", "Killed", "stress-ng: error: no"])
def test_output_without_a_figure_is_an_error_with_its_last_lines(parse, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SpecError):
        parse(text)


def test_arguments_hold_time_and_place() -> None:
    by_name = {w.name: w for w in WORKLOADS}
    assert "--time=7" in by_name["integer"].arguments(7, "/tmp")
    assert by_name["processes"].arguments(7, "/tmp")[:4] == ["--fork", "1", "--timeout", "7s"]
    assert "--direct=1" in by_name["reads"].arguments(7, "/dev/vdb")
    assert "--direct=0" in by_name["reads"].arguments(7, "/var/lib/vmkit/bench/data")


def test_workloads_by_name_and_area() -> None:
    assert chosen(()) == WORKLOADS
    assert {w.area for w in chosen(("memory",))} == {Area.MEMORY}
    assert [w.name for w in chosen(("integer", "stream"))] == ["integer", "stream"]
    with pytest.raises(SpecError, match="no workload 'gpu'"):
        chosen(("gpu",))


# ---- what is measured


def test_shadow_paging_has_a_phase_of_its_own_if_permitted() -> None:
    layout = lay_out(NESTED_HOST, EVERY, WORKLOADS, shadow=True)
    assert [[g.mode for g in p] for p in layout.phases] == [[Mode.NESTED, Mode.TCG], [Mode.SHADOW]]
    assert layout.reload
    assert layout.order(3) == [0, 1, 1, 0, 0, 1]
    carriers = [g for p in layout.phases for g in p if g.disks or g.nics]
    assert carriers == [
        Guest(Mode.NESTED, (Mode.VIRTIO, Mode.EMULATED), (Mode.VHOST, Mode.VIRTIO, Mode.EMULATED)),
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"others": ("web1",)}, "in use by web1"),
        ({"root": False}, "takes root"),
        ({"module": None}, "not a module"),
        ({"local": False}, "on this machine only"),
    ],
)
def test_why_the_module_is_not_loaded_again(changes: dict[str, object], reason: str) -> None:
    from dataclasses import replace

    layout = lay_out(replace(NESTED_HOST, **changes), EVERY, WORKLOADS, shadow=True)  # type: ignore[arg-type]
    assert any(s.mode is Mode.SHADOW and reason in s.reason for s in layout.skipped)
    assert not layout.reload


def test_without_leave_the_module_is_not_touched() -> None:
    layout = lay_out(NESTED_HOST, EVERY, WORKLOADS, shadow=False)
    assert [s.mode for s in layout.skipped] == [Mode.SHADOW, Mode.VF]
    assert "--shadow" in layout.skipped[0].reason
    assert "SR-IOV" in layout.skipped[1].reason
    assert len(layout.phases) == 1


def test_without_kvm_everything_goes_with_tcg() -> None:
    layout = lay_out(NO_KVM, EVERY, WORKLOADS, shadow=True)
    assert [g.mode for p in layout.phases for g in p] == [Mode.TCG]
    assert layout.phases[0][0].disks == (Mode.VIRTIO, Mode.EMULATED)
    assert layout.phases[0][0].nics == (Mode.VIRTIO, Mode.EMULATED)
    reasons = {s.mode: s.reason for s in layout.skipped}
    assert "libvirt offers no KVM here" in reasons[Mode.NESTED]
    assert "vhost_net" in reasons[Mode.VHOST]


def test_disks_alone_take_one_guest() -> None:
    layout = lay_out(NESTED_HOST, EVERY, chosen(("disk",)), shadow=False)
    assert [[g.mode for g in p] for p in layout.phases] == [[Mode.NESTED]]


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(SpecError, match="nothing is left"):
        lay_out(NO_KVM, (Mode.NESTED,), WORKLOADS, shadow=False)


def test_the_vm_of_a_guest_is_a_valid_spec() -> None:
    from vmkit.vm.spec import parse

    guest = Guest(Mode.NESTED, (Mode.VIRTIO, Mode.EMULATED), (Mode.VHOST, Mode.VIRTIO, Mode.EMULATED))
    vm = parse(spec(guest, "bench"))
    assert vm.name == "vmkit-bench-kvm-nested"
    assert len(vm.disks) == 3
    assert [n.address for n in vm.nics] == ["192.0.2.2/29", "192.0.2.10/29", "192.0.2.18/29"]
    assert parse(spec(Guest(Mode.TCG), "bench")).nics[0].network == "none"
    assert subnet(1) == ("192.0.2.9", "192.0.2.10")


# ---- figures


def test_the_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = run_of(INTEGER, NESTED, READS, skipped=(Skipped(Mode.SHADOW, "not permitted"),))
    file = tmp_path / "host.json"
    file.write_text(json.dumps(measured.to_plain(run)))
    assert measured.load(file) == run
    assert measured.load(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 2}', '{"format": "x"}', '{"format": 1, "when": "", "seconds": 1, "machine": []}'],
)
def test_a_damaged_file_is_an_error_that_says_what_mends_it(text: str) -> None:
    with pytest.raises(SpecError) as e:
        measured.parse(text)
    assert e.value.hint == "vmkit bench host makes it anew"


def test_efficiency_is_of_the_median() -> None:
    assert NESTED.median == 2850
    assert NESTED.efficiency == pytest.approx(0.95)
    assert NESTED.spread == pytest.approx(150 / 2850)
    run = run_of(INTEGER, NESTED, SLOW)
    assert run.efficiency(Area.CPU, Mode.NESTED) == pytest.approx(0.95)
    assert run.efficiency(Area.MEMORY, Mode.NESTED) is None
    assert run.find(Area.CPU, "integer", Mode.TCG) is SLOW


def test_table() -> None:
    table = rows(run_of(READS, INTEGER, SLOW, NESTED))
    assert [(r.workload, r.mode) for r in table] == [
        ("cpu integer", "host"),
        ("cpu integer", "KVM, EPT/NPT"),
        ("cpu integer", "TCG"),
        ("disk random-read", "AHCI (KVM)"),
    ]
    assert (table[1].native, table[1].classic, table[1].spread) == ("95 %", "95-98 %", "±5 %")
    assert (table[2].native, table[2].spread) == ("4.0 %", "")
    assert table[3].classic == ""
    means = summary(run_of(INTEGER, NESTED, SLOW))
    assert [(r.workload, r.mode, r.native) for r in means] == [
        ("cpu (mean)", "KVM, EPT/NPT", "95 %"),
        ("cpu (mean)", "TCG", "4.0 %"),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(3.2149, "3.21"), (412.3, "412"), (21437.0, "21,400"), (0.0321, "0.0321"), (1234567.0, "1,230,000")],
)
def test_amounts_have_three_figures(value: float, text: str) -> None:
    assert amount(value) == text
    assert percent(0.0995) == "10 %"
    assert percent(None) == ""


def test_picture_is_svg_with_every_figure() -> None:
    root = ET.fromstring(draw(run_of(INTEGER, NESTED, SLOW, READS)))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    text = " ".join(root.itertext())
    for part in ("95 %", "4.0 %", "AHCI (KVM)", "EPT/NPT: 95-98 %", "host: 3,000 events/s", "itself a guest of QEMU"):
        assert part in text
    assert ET.fromstring(draw(run_of())).tag.endswith("svg")


def test_programs_are_unpacked_into_one_folder_and_nowhere_else(tmp_path: Path) -> None:
    import tarfile

    from vmkit.errors import UnsupportedError
    from vmkit.image import bench
    from vmkit.image.manifest import Image, ImageFile, ImageKind
    from vmkit.values import Bytes

    source = tmp_path / "file"
    source.write_text("x")
    archive = tmp_path / "programs.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name in (*bench.PROGRAMS, bench.LOADER, "../../outside"):
            tar.add(source, f"{bench.FOLDER}/{name}")
    file = ImageFile(archive, "0" * 64, Bytes(1))
    image = Image("bench", ImageKind.MICRO, "x86_64", "", "", programs=file)
    out = tmp_path / "a" / "b"
    out.mkdir(parents=True)
    bench.unpack(image, out)
    assert (out / "bench" / "fio").stat().st_mode & 0o111
    assert (out / "bench" / "outside").exists()
    assert not (tmp_path / "outside").exists()
    archive.write_bytes(b"no archive")
    with pytest.raises(UnsupportedError, match="cannot be unpacked"):
        bench.unpack(image, out)
    with pytest.raises(UnsupportedError, match="no programs"):
        bench.unpack(Image("bench", ImageKind.MICRO, "x86_64", "", ""), out)


def test_legend_of_all_modes_fits_into_the_picture() -> None:
    every = [Result(Area.CPU, "integer", m, "kvm", "events/s", (1.0,), 2.0) for m in Mode if m is not Mode.NATIVE]
    root = ET.fromstring(draw(run_of(INTEGER, *every)))
    texts = [e for e in root.iter("{http://www.w3.org/2000/svg}text") if e.text == "virtual function"]
    assert len(texts) == 1
    placed = re.match(r"translate\(([\d.]+) ", texts[0].get("transform", ""))
    right = float(placed[1]) if placed else float(texts[0].get("x", "nan"))
    assert right + 4.5 * len("virtual function") < float(root.get("viewBox", "").split()[2])
