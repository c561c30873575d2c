"""The deciding parts of a lab of nested Xen hosts: options, command line, recipe, and what a crash looks like."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.test_lab_kvm import grouped, pairs
from vmkit.errors import EffectError, SpecError
from vmkit.lab.kinds import kind_of
from vmkit.lab.kvm.options import KvmOptions
from vmkit.lab.layout import Layout
from vmkit.lab.nested import booted, config, emulator, hardware, machine, older
from vmkit.lab.nested.blueprint import Blueprint, blueprint
from vmkit.lab.nested.hardware import Engine, Files
from vmkit.lab.nested.recipe import read_recipe
from vmkit.lab.xen import command
from vmkit.lab.xen.engine import choose_engine
from vmkit.lab.xen.flavour import FLAVOUR
from vmkit.lab.xen.options import XenOptions
from vmkit.progress import Event, Note, silent
from vmkit.system.templates import template
from vmkit.values import Bytes

LAYOUT = Layout(Path("/var/lib/vmkit/lab/xen"))
ENGINE = Engine(Path("/usr/bin/qemu-system-x86_64"), (10, 0, 2), "tcg")


def files(host: str = "h1") -> Files:
    own = LAYOUT.host(host)
    return Files(
        *(own, own / "disk", Path("/k"), Path("/i"), own / "payload", LAYOUT.pool, 40000), hypervisor=Path("/xen")
    )


def plan(hosts: int = 2) -> Blueprint:
    return blueprint("xen", "xen", XenOptions(), ("tcg", "why"), [40000 + n for n in range(hosts)], "machine-1")


def test_the_whole_command_line() -> None:
    argv = command.command("xen/h1", ENGINE, XenOptions(), files(), FLAVOUR.cmdline)
    golden = (Path(__file__).parent.parent / "data/lab_xen_command.txt").read_text().splitlines()
    assert [" ".join(words) for words in grouped(argv)] == golden


def test_commas_of_the_kernels_command_line_do_not_end_the_module() -> None:
    argv = command.command("x", ENGINE, XenOptions(), files(), "root=/dev/sda a=b,c")
    (modules,) = [value for option, value in pairs(argv) if option == "-initrd"]
    first, second = re.split(r"(?<!,),(?!,)", modules)
    assert first.startswith("/k root=/dev/sda a=b,,c ")
    assert second == "/i"


def test_what_a_host_can_see_is_the_same_for_every_host_and_what_differs_makes_another_saved_machine() -> None:
    text = FLAVOUR.key_text(ENGINE, XenOptions(), "image", "build")
    assert "/var/lib" not in text
    assert FLAVOUR.key_text(ENGINE, XenOptions(memory=Bytes.parse("4G")), "image", "build") != text
    assert FLAVOUR.key_text(ENGINE, XenOptions(vcpus=2), "image", "build") != text
    assert FLAVOUR.key_text(replace(ENGINE, version=(10, 0, 3)), XenOptions(), "image", "build") != text


def test_options_of_another_kind_are_refused_and_guests_need_memory_beside_dom0() -> None:
    kind = kind_of("xen")
    assert kind.wish(None, None).options == XenOptions()
    with pytest.raises(SpecError, match="not options"):
        kind.wish(1, KvmOptions())
    with pytest.raises(SpecError, match="too little") as wrong:
        kind.wish(1, XenOptions(memory=Bytes.parse("1G")))
    assert wrong.value.path == "--memory"
    assert XenOptions.MIN_MEMORY > command.DOM0_MEMORY


def test_a_blueprint_survives_json_and_leads_to_xens_driver() -> None:
    assert Blueprint.parse(plan().plain(), XenOptions) == plan()
    assert config.uri("xen", LAYOUT, plan().hosts[1]) == "xen+ssh://root@h2/system?command=/var/lib/vmkit/lab/xen/ssh"
    inside = config.host_files(FLAVOUR, LAYOUT, plan(), plan().hosts[0])
    assert "usr/local/bin/vmkit" not in inside
    assert "etc/libvirt/qemu.conf" not in inside


def test_the_recipe_is_whole_and_adds_to_what_every_nested_host_has() -> None:
    recipe = read_recipe("xen")
    assert len(recipe.packages) == len(set(recipe.packages))
    assert {"xen-hypervisor-4.17-amd64", "libvirt-daemon-driver-xen", "openssh-server"} <= set(recipe.packages)
    assert "etc/systemd/network/20-br0.netdev" in recipe.files
    assert recipe.files["etc/fstab"].startswith("/dev/sda ")
    links = "".join(text for path, text in recipe.files.items() if path.endswith(".link"))
    assert all(mac in links for mac in (hardware.MAC_MGMT, *hardware.MAC_LAB))
    assert read_recipe("kvm").key != recipe.key


def test_every_kinds_own_part_has_what_the_shared_scripts_call() -> None:
    for kind in ("kvm", "xen"):
        assert "\nown() {" in template(f"lab-{kind}/own").read_text()
        host = template(f"lab-{kind}/host").read_text()
        assert "\nwarm_up() {" in host
        assert "\npayload=/dev/" in host


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("(XEN) Panic on CPU 1:", True),
        ("[   12.3] Kernel panic - not syncing: Attempted to kill init!", True),
        ("(XEN) Domain 0 crashed: rebooting machine in 5 seconds.", True),
        ("(XEN) *** Building a PV Dom0 ***", False),
    ],
)
def test_a_crash_is_read_off_the_console(line: str, seen: bool, tmp_path: Path) -> None:
    console = tmp_path / "console.log"
    assert machine.crashed(console) is None
    console.write_bytes(b"\xff before\r\n" + line.encode() + b"\r\nafter\r\n")
    assert machine.crashed(console) == (line if seen else None)


def test_hosts_that_crash_are_started_again_and_every_retry_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Layout] = []
    monkeypatch.setattr(booted, "end_processes", ended.append)
    (tmp_path / "console.log").write_text("(XEN) Panic on CPU 0:\n")
    told: list[Event] = []
    calls = 0

    def attempt(failures: int) -> int:
        nonlocal calls
        calls += 1
        if calls <= failures:
            raise machine.CrashedError(f"h1 crashed, {calls}")
        return calls

    assert booted.again_after_crash(LAYOUT, [tmp_path], lambda: attempt(2), told.append) == 3
    assert [e.text for e in told if isinstance(e, Note)] == [
        "h1 crashed, 1; started again, attempt 2 of 3",
        "h1 crashed, 2; started again, attempt 3 of 3",
    ]
    assert ended == [LAYOUT, LAYOUT]
    assert not (tmp_path / "console.log").exists()
    calls = 0
    with pytest.raises(EffectError, match="h1 crashed, 3"):
        booted.again_after_crash(LAYOUT, [tmp_path], lambda: attempt(5), told.append)


@pytest.mark.parametrize(("installed", "fetched"), [((7, 2, 22), False), ((10, 0, 2), True), ((8, 2, 0), True)])
def test_hosts_run_on_the_qemu_on_which_their_guests_live(
    installed: tuple[int, ...], fetched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Engine(Path("/old/qemu"), (7, 2, 22), "tcg", Path("/old/libraries"))
    monkeypatch.setattr(emulator, "find", lambda: (Path("/usr/bin/qemu-system-x86_64"), installed))
    monkeypatch.setattr(older, "engine", lambda _purpose, _reporter: old)
    chosen, reason = choose_engine(XenOptions(), silent)
    assert (chosen is old) == fetched
    assert chosen.version[:2] == (7, 2)
    assert chosen.accel == "tcg"
    assert ("QEMU 7.2" in reason) == fetched
