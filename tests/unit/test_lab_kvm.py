"""The deciding parts of a lab of nested hosts: options, blueprint, command line, texts, what is kept."""

from __future__ import annotations

import itertools
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkit.errors import (
    ConflictError,
    DeadlineError,
    EffectError,
    NotFoundError,
    RefusedError,
    SpecError,
    UnsupportedError,
)
from vmkit.image.recipe import parse_recipe
from vmkit.image.tree import finish
from vmkit.lab import cache
from vmkit.lab.api import Labs
from vmkit.lab.cache import Cached
from vmkit.lab.kinds import KINDS, describe, kind_of
from vmkit.lab.kvm import command, engine
from vmkit.lab.kvm import config as kvm_config
from vmkit.lab.kvm.flavour import FLAVOUR
from vmkit.lab.kvm.kind import KIND
from vmkit.lab.kvm.options import KvmOptions
from vmkit.lab.layout import Layout
from vmkit.lab.nested import build, config, emulator, hardware
from vmkit.lab.nested.blueprint import DHCP, STATIC, Blueprint, blueprint
from vmkit.lab.nested.hardware import ANYWHERE, Engine, Files
from vmkit.lab.nested.options import check_hosts
from vmkit.lab.nested.prune import stale
from vmkit.lab.nested.recipe import read_recipe
from vmkit.lab.state import LabState, Phase
from vmkit.lab.together import with_all
from vmkit.progress import silent
from vmkit.system.lines import check_socket_path
from vmkit.system.templates import template
from vmkit.values import Bytes, check_mac

LAYOUT = Layout(Path("/var/lib/vmkit/lab/kvm"))
READERS = ("lab-nested/identity", "lab-kvm/own")
ENGINE = Engine(Path("/usr/bin/qemu-system-x86_64"), (10, 0, 2), "tcg")
FULL = KvmOptions(sriov=True, hugepages=200).checked()


@pytest.mark.parametrize(
    ("version", "accel", "vcpus"), [((7, 2, 22), "tcg", 1), ((7, 2, 22), "kvm", 2), ((8, 1, 0), "tcg", 2)]
)
def test_an_emulator_whose_threads_race_gets_one_vcpu(version: tuple[int, ...], accel: str, vcpus: int) -> None:
    old = replace(ENGINE, version=version, accel=accel)
    argv = command.command("h1", old, KvmOptions(shadow=True), ANYWHERE, "root=/dev/vda")
    assert argv[argv.index("-smp") + 1] == f"{vcpus}"


def plan(hosts: int = 2, options: KvmOptions = FULL, name: str = "kvm") -> Blueprint:
    return blueprint("kvm", name, options, ("tcg", "no KVM"), [40000 + n for n in range(hosts)], "machine-1")


def files(host: str = "h1", **changes: Path) -> Files:
    own = LAYOUT.host(host)
    made = Files(own, own / "disk", Path("/k"), Path("/i"), own / "payload", LAYOUT.pool, 40000)
    return replace(made, **changes)


def pairs(argv: list[str]) -> list[tuple[str, str]]:
    return [(a, b) for a, b in itertools.pairwise(argv) if a.startswith("-")]


# -- options


def test_the_card_brings_the_iommu_that_its_functions_need() -> None:
    assert KvmOptions(sriov=True).checked().iommu
    assert not KvmOptions().checked().iommu


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (KvmOptions(vcpus=0), "--vcpus"),
        (KvmOptions(vcpus=65), "--vcpus"),
        (KvmOptions(memory=Bytes.parse("512M")), "--memory"),
        (KvmOptions(hugepages=-1), "--hugepages"),
        (KvmOptions(hugepages=1400), "--hugepages"),
    ],
)
def test_hardware_that_cannot_be(options: KvmOptions, field: str) -> None:
    with pytest.raises(SpecError) as wrong:
        options.checked()
    assert wrong.value.path == field


@given(st.integers(0, 5000), st.integers(1, 16))
def test_the_hint_for_too_many_huge_pages_is_enough(pages: int, gib: int) -> None:
    options = KvmOptions(hugepages=pages, memory=Bytes(gib * 2**30))
    try:
        options.checked()
    except SpecError as e:
        size = (e.hint or "").rpartition(" ")[2]
        replace(options, memory=Bytes(Bytes.parse(size) + 2**29)).checked()


@pytest.mark.parametrize("count", [-1, 0, 5, 100])
def test_a_number_of_hosts_that_cannot_be(count: int) -> None:
    with pytest.raises(SpecError, match="between 1 and 4"):
        check_hosts(count)


def test_no_memory_is_refused_before_anything_is_made(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "available_memory", lambda: Bytes.parse("5G"))
    build.check_memory(1, KvmOptions())
    with pytest.raises(RefusedError, match=r"2 hosts of 2\.7G need [\d.]+[MG] of memory, and 5G are free") as refused:
        build.check_memory(2, KvmOptions())
    assert "--memory" in (refused.value.hint or "")


# -- blueprint


def test_a_blueprint_survives_json_and_is_settled_by_machine_lab_and_host() -> None:
    assert Blueprint.parse(plan().plain(), KvmOptions) == plan()
    other = plan(name="other")
    both = (*plan().hosts, *other.hosts)
    for attribute in ("mac", "uuid", "machine_id"):
        assert len({getattr(h, attribute) for h in both}) == 4
    assert all(check_mac(h.mac) and re.fullmatch("[0-9a-f]{32}", h.machine_id) for h in both)


def test_addresses_of_hosts_guests_and_users_are_apart() -> None:
    octets = [int(h.address.rpartition(".")[2]) for h in plan(4).hosts]
    ends = [int(a.rpartition(".")[2]) for a in (*DHCP, *STATIC)]
    assert [*octets, *ends] == sorted({*octets, *ends})


# -- command line


def test_the_whole_command_line() -> None:
    argv = command.command("kvm/h1", ENGINE, FULL, files(), "root=/dev/vda rw console=ttyS0")
    golden = (Path(__file__).parent.parent / "data/lab_kvm_command.txt").read_text().splitlines()
    assert [" ".join(words) for words in grouped(argv)] == golden


def grouped(argv: list[str]) -> list[list[str]]:
    """An option and its value on a line."""
    found: list[list[str]] = []
    for word in argv:
        if word.startswith("-") or not found:
            found.append([word])
        else:
            found[-1].append(word)
    return found


def test_what_a_host_can_see_is_the_same_for_every_host_and_lab() -> None:
    here = command.command("kvm/h1", ENGINE, FULL, files(), "x")
    there = command.command("b/h2", ENGINE, FULL, files("h2", left=Path("/l"), disk=Path("/other")), "x")
    seen = [
        [v for o, v in pairs(a) if o in ("-device", "-machine", "-cpu", "-smp", "-m", "-append")] for a in (here, there)
    ]
    assert seen[0] == seen[1]
    assert here != there


def test_hosts_are_a_chain_and_its_ends_drop_what_is_sent_there() -> None:
    made = plan(3)
    image = build.HostImage("k", Path("/d"), Path("/k"), Path("/i"), "")
    chain = [build.host_files(LAYOUT, made, n, image) for n in range(3)]
    assert [f.left for f in chain] == [None, chain[0].right, chain[1].right]
    assert [build.wires(made, h.name) for h in made.hosts] == [["right"], ["left", "right"], ["left"]]
    for f in chain:
        text = " ".join(command.command("x", ENGINE, KvmOptions(), f, ""))
        assert text.count("-netdev stream") == 2
        assert f"server=on,addr.type=unix,addr.path={f.right}" in text
        assert "hubport" not in text


def test_only_what_is_asked_for_is_there() -> None:
    plain = " ".join(command.command("x", ENGINE, KvmOptions(), files(), ""))
    assert "iommu" not in plain
    assert "igb" not in plain
    iommu = command.command("x", ENGINE, KvmOptions(iommu=True), files(), "")
    assert iommu.index("intel-iommu,intremap=on") < iommu.index("virtio-blk-pci,drive=root,addr=0x5")
    assert "igb" not in " ".join(iommu)


@pytest.mark.parametrize(
    ("version", "memory", "works"),
    [((9, 2, 0), "3G", True), ((10, 0, 2), "2816M", False), ((10, 0, 2), "2752M", True), ((10, 0, 3), "3G", True)],
)
def test_virtual_functions_that_would_be_dead_are_refused(
    version: tuple[int, ...], memory: str, works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator, "find", lambda: (Path("/usr/bin/qemu-system-x86_64"), version))
    monkeypatch.setattr(engine, "_accel", lambda _reporter: ("tcg", "no KVM"))
    options = KvmOptions(sriov=True, memory=Bytes.parse(memory)).checked()
    if works:
        assert engine.choose_engine(options, silent)[0].version == version
    else:
        with pytest.raises(UnsupportedError, match=r"QEMU 10\.0\.2 cannot give") as refused:
            engine.choose_engine(options, silent)
        assert "--memory 2752M" in (refused.value.hint or "")


def test_real_kvm_gets_the_hosts_cpu_and_split_interrupt_controllers_for_remapping() -> None:
    argv = command.command("x", replace(ENGINE, accel="kvm"), FULL, files(), "")
    assert ("-cpu", "host") in pairs(argv)
    assert ("-machine", "q35,kernel-irqchip=split") in pairs(argv)


def test_a_saved_machine_is_for_the_same_hardware_image_and_qemu_only() -> None:
    text = FLAVOUR.key_text(ENGINE, FULL, "image", "build")
    assert FLAVOUR.key_text(replace(ENGINE, binary=Path("/elsewhere")), FULL, "image", "build") == text
    assert FLAVOUR.key_text(ENGINE, replace(FULL, hugepages=0, shadow=True), "image", "build") == text
    others = [
        FLAVOUR.key_text(replace(ENGINE, version=(10, 0, 3)), FULL, "image", "build"),
        FLAVOUR.key_text(replace(ENGINE, accel="kvm"), FULL, "image", "build"),
        FLAVOUR.key_text(ENGINE, replace(FULL, memory=Bytes.parse("2G")), "image", "build"),
        FLAVOUR.key_text(ENGINE, replace(FULL, vcpus=1), "image", "build"),
        FLAVOUR.key_text(ENGINE, KvmOptions(), "image", "build"),
        FLAVOUR.key_text(ENGINE, FULL, "other", "build"),
        FLAVOUR.key_text(ENGINE, FULL, "image", "other"),
    ]
    assert len({text, *others}) == len(others) + 1
    assert ANYWHERE.port == 0


def test_a_folder_too_deep_for_sockets_is_refused() -> None:
    with pytest.raises(RefusedError, match="too long for a socket") as refused:
        KIND.check_place(Layout(Path("/" + "x" * 90) / "lab/kvm"))
    assert "VMKIT_HOME" in (refused.value.hint or "")
    check_socket_path(Path("/tmp/x"))


# -- texts


def test_the_uri_means_the_same_on_the_machine_and_in_the_hosts() -> None:
    made = plan()
    uri = config.uri("kvm", LAYOUT, made.hosts[1])
    assert uri == "qemu+ssh://root@h2/system?command=/var/lib/vmkit/lab/kvm/ssh"
    inside = config.host_files(FLAVOUR, LAYOUT, made, made.hosts[0])
    assert str(LAYOUT.ssh)[1:] in inside
    assert "Host h2\n  HostName 127.0.0.1\n  Port 40001\n" in config.ssh_config(LAYOUT, made)
    assert "Host h2\n  HostName 192.168.77.12\n" in inside["etc/ssh/ssh_config.d/vmkit-lab.conf"]


def test_ssh_checks_host_keys_and_keeps_off_the_users_files() -> None:
    text = config.ssh_config(LAYOUT, plan())
    assert "StrictHostKeyChecking yes" in text
    assert f"UserKnownHostsFile {LAYOUT.known_hosts}" in text
    assert "~" not in text
    keys = {"h1": "ssh-ed25519 AAAA1 h1\n", "h2": "ssh-ed25519 AAAA2 h2\n"}
    assert config.known_hosts(plan(), keys).splitlines()[1] == "h2,[127.0.0.1]:40001 ssh-ed25519 AAAA2"


def test_only_hosts_that_have_company_share_their_pool() -> None:
    one, two = plan(1), plan(2)
    assert "SHARE=no\n" in config.settings(FLAVOUR, one, one.hosts[0])
    assert "SHARE=yes\n" in config.settings(FLAVOUR, two, two.hosts[1])
    assert "shared_filesystems" not in kvm_config.qemu_conf(one, one.hosts[0])
    assert f'shared_filesystems = [ "{config.POOL}" ]' in kvm_config.qemu_conf(two, two.hosts[0])


def test_one_host_serves_dhcp_and_libvirt_has_an_identity_of_its_own() -> None:
    made = plan(3)
    lines = [config.settings(FLAVOUR, made, h).splitlines() for h in made.hosts]
    assert [line for host in lines for line in host if line.startswith("DHCP")] == ["DHCP=yes", "DHCP=no", "DHCP=no"]
    for host in made.hosts:
        assert (
            config.host_files(FLAVOUR, LAYOUT, made, host)["etc/libvirt/libvirtd.conf"]
            == f'host_uuid = "{host.uuid}"\n'
        )
    assert f"dhcp-range={DHCP[0]},{DHCP[1]},255.255.255.0,12h" in config.dnsmasq_conf(made)


def test_the_host_reads_every_setting_that_is_written_and_no_other() -> None:
    made = plan()
    written = {line.partition("=")[0] for line in config.settings(FLAVOUR, made, made.hosts[0]).splitlines()}
    read = set(re.findall(r"setting ([A-Z_]+)\)", "".join(template(f).read_text() for f in READERS)))
    assert written == read


# -- recipe


def test_the_recipe_is_whole() -> None:
    recipe = read_recipe("kvm")
    assert len(recipe.packages) == len(set(recipe.packages))
    assert {"linux-image-amd64", "libvirt-daemon-system", "python3-libvirt", "openssh-server"} <= set(recipe.packages)
    for path in (*recipe.early, *recipe.files, *recipe.programs, *recipe.folders, *recipe.links):
        assert not path.startswith("/")
        assert ".." not in path
    macs = (hardware.MAC_MGMT, *hardware.MAC_LAB, command.MAC_PF, command.MAC_WIRE)
    links = "".join(text for path, text in recipe.files.items() if path.endswith(".link"))
    assert all(mac in links for mac in macs)
    assert hardware.CHANNEL in recipe.programs["usr/lib/vmkit-lab/settle"]
    assert finish(recipe).startswith("set -e\n")


def test_the_recipe_has_a_package_for_everything_that_vmkit_imports() -> None:
    """vmkit runs in the hosts with Debian's Python packages."""
    import tomllib

    wanted = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[<>=\[ ]", w)[0].lower() for w in wanted}
    debian = {"libvirt-python": "libvirt", "pyyaml": "yaml"}
    assert {f"python3-{debian.get(n, n)}" for n in names} <= set(read_recipe("kvm").packages)


def test_anything_in_the_recipe_changes_its_key() -> None:
    folder = template("lab-kvm")
    text = (folder / "recipe.yaml").read_text()
    assert parse_recipe(text.replace("kvm-host", "other"), folder, template("lab-nested")).key != read_recipe("kvm").key
    assert parse_recipe(text + "\n# a remark\n", folder, template("lab-nested")).key == read_recipe("kvm").key
    with pytest.raises(EffectError, match="damaged"):
        parse_recipe("suite: x", folder)


# -- what is kept


def entry(name: str, created: str = "2026-01-02", used: tuple[str, ...] = ()) -> Cached:
    return Cached(name, name.partition("-")[0], Bytes(1), created, used, Path("/") / name, "1")


def test_what_another_recipe_left_is_stale() -> None:
    there = [entry("image-new"), entry("image-old", "2026-01-01"), entry("qemu-bookworm")]
    there += [entry("booted-a", "2026-01-01"), entry("booted-b", "2026-01-03")]
    assert [e.name for e in there if stale(e, there, frozenset({"new"}))] == ["image-old", "booted-a"]
    assert stale(entry("booted-b"), [], frozenset({"new"}))


def test_a_thing_is_made_once_and_a_failure_leaves_nothing(home: Path) -> None:
    def fails(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise EffectError("no luck")

    with pytest.raises(EffectError):
        cache.make("image-a", 1, fails)
    assert [p.name for p in cache.root().iterdir()] == [".image-a.lock"]
    made = cache.make("image-a", 1, lambda folder: (folder / "disk").write_text("x") and None)
    assert cache.make("image-a", 1, fails) == made
    assert [e.name for e in Labs().cached()] == ["image-a"]
    with pytest.raises(RefusedError, match="free"):
        cache.make("image-b", 2**60, fails)


def test_what_a_killed_process_left_half_made_goes(home: Path) -> None:
    half = cache.root() / ".new-image-a~12345678"
    half.mkdir(parents=True)
    (half / "disk").write_text("x")
    assert Labs().prune() == []
    assert not half.exists()


def test_what_a_lab_stands_on_is_not_pruned(home: Path) -> None:
    cache.make("image-old", 1, lambda folder: None)
    layout = Layout.of(home, "kvm")
    layout.folder.mkdir(parents=True)
    from vmkit.lab.state import save

    save(layout, LabState("kvm", "kvm", "t", "now", Phase.UP, replace(plan(), uses=("image-old",)).plain()))
    assert Labs().prune(everything=True) == []
    layout.state.unlink()
    assert [e.name for e in Labs().prune(everything=True)] == ["image-old"]
    assert Labs().cached() == []


# -- kinds and the facade


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_kind_has_all_the_functions(name: str) -> None:
    functions = kind_of(name)
    for function in ("wish", "check_place", "check_same", "build", "describe", "entering", "needs_root"):
        assert callable(getattr(functions, function))


def test_a_kind_that_is_not_known(home: Path) -> None:
    with pytest.raises(SpecError, match="not a kind"):
        Labs().up("vmware")
    lab = describe(LAYOUT, LabState("x", "vmware", "t", "now", Phase.UP))
    assert lab.state == "broken"


def test_options_are_for_nested_hosts_only(home: Path) -> None:
    with pytest.raises(SpecError, match="no such options"):
        Labs().up("pair", options=KvmOptions())


def test_a_lab_that_is_up_has_to_be_what_is_asked_for() -> None:
    state = LabState("kvm", "kvm", "t", "now", Phase.UP, plan(2).plain())
    KIND.check_same(state, KIND.wish(2, FULL))
    for wish in (KIND.wish(1, FULL), KIND.wish(2, KvmOptions())):
        with pytest.raises(ConflictError, match="is up, with other hosts"):
            KIND.check_same(state, wish)


def test_a_user_without_rights_is_told_to_have_the_image_built(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(cache, "_SYSTEM", home / "none")
    with pytest.raises(RefusedError) as refused:
        Labs().image("kvm")
    assert "sudo vmkit lab image build kvm" in (refused.value.hint or "")


def test_a_machine_without_mmdebstrap_is_told_the_package(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vmkit.errors import UnsupportedError

    monkeypatch.setattr(cache, "_SYSTEM", home / "none")
    monkeypatch.setattr("shutil.which", lambda *_a, **_k: None)
    with pytest.raises(UnsupportedError) as missing:
        Labs().image("kvm")
    assert missing.value.hint == "apt-get install mmdebstrap"


def test_words_of_a_command_arrive_as_they_are() -> None:
    state = LabState("kvm", "kvm", "t", "now", Phase.UP, plan(1).plain())
    (host,) = KIND.describe(LAYOUT, state)
    assert host.state == "down"
    argv = KIND.entering(LAYOUT, host, ["sh", "-c", "echo $HOME 'a b'"], True)
    assert argv == [str(LAYOUT.ssh), "-t", "--", "h1", "sh -c 'echo $HOME '\"'\"'a b'\"'\"''"]


def test_the_first_failure_of_many_is_raised_at_once() -> None:
    def work(thing: int) -> None:
        if thing == 2:
            raise NotFoundError("two")

    with pytest.raises(NotFoundError):
        with_all([1, 2, 3], work, what="all", timeout=5)
    import threading

    stop = threading.Event()
    with pytest.raises(DeadlineError):
        with_all([1], lambda _: stop.wait(5) and None, what="all", timeout=0.1)
    stop.set()
