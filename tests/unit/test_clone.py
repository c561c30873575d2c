"""Copies of VMs, as far as nothing runs: the head of saved memory, identities, what is refused, many at once."""

from __future__ import annotations

import shutil
import signal
import struct
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmkit.errors import (
    CancelledError,
    ConflictError,
    EffectError,
    NotFoundError,
    RefusedError,
    SpecError,
    UnsupportedError,
    VmkitError,
)
from vmkit.progress import Event, Finished, Note, Reporter
from vmkit.system.files import copy_with_head
from vmkit.vm.clone.identity import Card, addressed, cards_of, memory_of, new, respecced, rewritten
from vmkit.vm.clone.inside import script
from vmkit.vm.clone.plan import Copy, SourceDisk, SourceFacts, decide, kept
from vmkit.vm.clone.save_file import HEADER, SaveHead, head_length
from vmkit.vm.many import Outcome, for_each
from vmkit.vm.metadata import NAMESPACE, Remembered, to_text

SPEC: dict[str, Any] = {"name": "web", "image": "micro", "nics": [{"network": "lab", "mac": "52:54:00:00:00:01"}]}
REMEMBERED = Remembered(SPEC, "micro", ("web-0.qcow2",), "web-console.log")
XML = f"""<domain type='qemu' id='7'><name>web</name><uuid>09ddc3c2-5206-4d7b-aee2-a5f6f3700794</uuid>
<genid>11111111-5206-4d7b-aee2-a5f6f3700794</genid>
<metadata><v:vm xmlns:v='{NAMESPACE}'>{to_text(REMEMBERED).replace("&", "&amp;")}</v:vm></metadata>
<memory unit='KiB'>131072</memory>
<os><kernel>/pool/k</kernel><initrd>/pool/i</initrd><cmdline>quiet vmkit.name=web vmkit.ip=dhcp</cmdline></os>
<devices><disk type='file' device='disk'><driver type='qcow2'/><source file='/pool/web-0.qcow2'/>
<backingStore type='file'><source file='/pool/0123456789abcdef.qcow2'/></backingStore><target dev='vda'/></disk>
<interface type='network'><mac address='52:54:00:00:00:01'/><source network='lab'/><target dev='vnet3'/>
<model type='virtio'/></interface>
<serial type='pty'><log file='/pool/web-console.log' append='on'/></serial></devices></domain>"""
DISK = SourceDisk("vda", "/pool/web-0.qcow2", "web-0.qcow2", "/pool/0123456789abcdef.qcow2", size=200_000)
FACTS = SourceFacts(
    name="web",
    uuid="09ddc3c2-5206-4d7b-aee2-a5f6f3700794",
    state="running",
    xml=XML,
    disks=(DISK,),
    remembered=REMEMBERED,
    agent=True,
    stateless=True,
    domains=frozenset({"web", "db"}),
    qemu=(10, 0, 2),
    free=1 << 40,
)
CARDS = cards_of(XML, SPEC)


# -- the head of a saved memory


def head(xml: str, cookie: str = "<cookie/>", *, room: int = 4096, magic: bytes = b"LibvirtQemudSave") -> bytes:
    body = xml.encode() + b"\0" + (cookie.encode() + b"\0" if cookie else b"")
    offset = len(xml.encode()) + 1 if cookie else 0
    return struct.pack("=16s5I56x", magic, 2, room, 1, 0, offset) + body.ljust(room, b"\0")


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300), st.booleans())
def test_a_head_is_read_and_packed_with_another_xml(xml: str, with_cookie: bool) -> None:
    old = head("<domain/>", "<cookie/>" if with_cookie else "")
    found = SaveHead.parse(old)
    assert (found.xml, found.cookie) == ("<domain/>", b"<cookie/>" if with_cookie else b"")
    assert found.packed("<domain/>") == old
    packed = found.packed(xml)
    assert len(packed) == len(old) == head_length(packed[: HEADER.size])
    assert SaveHead.parse(packed) == replace(found, xml=xml)


def test_what_is_no_head_is_refused() -> None:
    with pytest.raises(EffectError, match="never finished"):
        head_length(head("<a/>", magic=b"LibvirtQemudPart"))
    with pytest.raises(EffectError):
        head_length(b"LibvirtQemudSave")
    with pytest.raises(EffectError, match="cut off"):
        SaveHead.parse(head("<a/>")[:200])
    with pytest.raises(UnsupportedError, match="version 33554432"):
        head_length(struct.pack(">16s5I56x", b"LibvirtQemudSave", 2, 4096, 1, 0, 5))
    with pytest.raises(EffectError, match="no room"):
        SaveHead.parse(head("<a/>")).packed("x" * 5000)


def test_a_file_is_copied_behind_another_head(tmp_path: Path) -> None:
    old, copied = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"HEAD" + bytes(range(256)) * 5000)
    copy_with_head(old, copied, b"head")
    assert copied.read_bytes() == b"head" + old.read_bytes()[4:]
    assert copied.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConflictError):
        copy_with_head(old, copied, b"head")
    with pytest.raises(VmkitError):
        copy_with_head(tmp_path / "none", tmp_path / "other", b"")
    assert not (tmp_path / "other").exists()


# -- identities


def test_a_copy_has_nothing_of_its_source_that_tells_machines_apart() -> None:
    identity = new("copy", CARDS)
    text = rewritten(
        XML,
        identity,
        paths={"/pool/web-0.qcow2": "/other/copy-0.qcow2", "/pool/k": "/other/k"},
        remembered=kept(REMEMBERED, Copy(identity, ()), "copy-console.log"),
        log="/other/copy-console.log",
        down=True,
    )
    root = ET.fromstring(text)
    assert (root.findtext("name"), root.findtext("uuid"), root.get("id")) == ("copy", identity.uuid, None)
    assert root.findtext("genid") not in (None, "11111111-5206-4d7b-aee2-a5f6f3700794")
    mac = root.find("devices/interface/mac")
    assert mac is not None
    assert mac.get("address") == identity.cards[0].mac != "52:54:00:00:00:01"
    assert root.find("devices/interface/target") is None
    link = root.find("devices/interface/link")
    assert link is not None
    assert link.get("state") == "down"
    assert [s.get("file") for s in root.iterfind("devices/disk/source")] == ["/other/copy-0.qcow2"]
    assert root.find("devices/disk/backingStore") is None
    assert (root.findtext("os/kernel"), root.findtext("os/initrd")) == ("/other/k", "/pool/i")
    assert root.findtext("os/cmdline") == "quiet vmkit.name=copy vmkit.ip=dhcp"
    memory = memory_of(text)
    assert memory is not None
    assert memory.spec == {"name": "copy", "image": "micro", "nics": [{"network": "lab"}]}
    assert memory.console_log == "copy-console.log"
    for own in ("web-0", "web-console", "52:54:00:00:00:01", "vnet3"):
        assert own not in text


def test_two_copies_differ_in_everything() -> None:
    one, two = new("a", CARDS), new("b", CARDS)
    for field in ("uuid", "machine_id", "seed"):
        assert getattr(one, field) != getattr(two, field)
    assert one.cards[0].mac != two.cards[0].mac


def test_fixed_addresses_count_on_and_are_never_shared() -> None:
    fixed = (replace(CARDS[0], address="192.0.2.5/24", old_address="192.0.2.5/24", gateway="192.0.2.1"),)
    with pytest.raises(SpecError, match="two VMs cannot share"):
        addressed(fixed, None, 0, name="web")
    assert [addressed(fixed, "192.0.2.9/24", i, name="web")[0].address for i in range(3)] == [
        "192.0.2.9/24",
        "192.0.2.10/24",
        "192.0.2.11/24",
    ]
    assert addressed(fixed, "192.0.2.9/24", 0, name="web")[0].gateway == "192.0.2.1"
    assert addressed(fixed, "dhcp", 0, name="web")[0].gateway is None
    given = addressed(CARDS, "192.0.2.9/24,gateway=192.0.2.254", 1, name="web")[0]
    assert (given.address, given.gateway) == ("192.0.2.10/24", "192.0.2.254")
    with pytest.raises(SpecError, match=r"the gateway '192\.0\.2' is no IP address"):
        addressed(CARDS, "192.0.2.9/24,gateway=192.0.2", 0, name="web")
    with pytest.raises(SpecError, match="goes with a fixed address"):
        addressed(CARDS, "dhcp,gateway=192.0.2.1", 0, name="web")
    second = (*CARDS, replace(fixed[0], index=1))
    assert addressed(second, None, 0, name="web")[1].address == "none"
    for wrong in ("192.0.2.9", "nonsense/24", "192.0.2.9/99"):
        with pytest.raises(SpecError, match="not ADDRESS/PREFIX"):
            addressed(CARDS, wrong, 0, name="web")
    with pytest.raises(SpecError, match="not all in"):
        addressed(CARDS, "192.0.2.255/24", 1, name="web")
    with pytest.raises(SpecError, match="no network card"):
        addressed((), "dhcp", 0, name="web")


def test_the_spec_of_a_copy_says_its_own_address() -> None:
    identity = new("copy", addressed(CARDS, "192.0.2.9/24", 0, name="web"))
    assert respecced(SPEC, identity)["nics"] == [{"network": "lab", "address": "192.0.2.9/24"}]
    assert respecced({"name": "web"}, identity) == {"name": "copy"}
    wired = {**SPEC, "nics": [{"network": "none"}, {"network": "lab", "address": "192.0.2.5/24"}]}
    assert cards_of(XML, wired) == (
        Card("52:54:00:00:00:01", "52:54:00:00:00:01", "192.0.2.5/24", None, "192.0.2.5/24", None, 1),
    )


def test_the_script_for_the_guest_is_one_that_a_shell_reads(tmp_path: Path) -> None:
    shell = shutil.which("dash") or "/bin/sh"
    text = script(new("it's", (replace(CARDS[0], old="no:such:card"),)), 0)
    assert subprocess.run([shell, "-n"], input=text, text=True, check=False).returncode == 0
    head_of = text[: text.index("export PATH")] + 'printf "%s|" "$name" "$seedless" "$cards"'
    done = subprocess.run([shell, "-s"], input=head_of, text=True, capture_output=True, check=True, cwd=tmp_path)
    assert done.stdout.startswith("it's|no|no:such:card 52:54:00:")


# -- what is decided


def test_a_running_vm_is_copied_live_and_one_that_is_off_cold() -> None:
    live = decide(FACTS, ["a", "b"], CARDS)
    assert live.live
    assert not live.plan.warnings
    assert live.inside
    assert [s.verb for s in live.plan.steps] == [
        "save",
        "define",
        "copy",
        "define",
        "copy",
        "merge",
        "rename",
        "rename",
    ]
    assert [d.volume for c in live.copies for d in c.disks] == ["a-0.qcow2", "b-0.qcow2"]
    assert {d.backing for c in live.copies for d in c.disks} == {"/pool/0123456789abcdef.qcow2"}
    cold = decide(replace(FACTS, state="shut off", answers=False), ["a"], CARDS, full=True)
    assert not cold.live
    assert not cold.inside  # the micro guest reads who it is from the kernel command line
    assert cold.copies[0].disks[0].backing is None
    assert decide(replace(FACTS, state="shut off", stateless=False), ["a"], CARDS).inside


def test_a_disk_that_stands_on_a_snapshot_is_copied_whole() -> None:
    disk = replace(DISK, backing="/pool/web-0.snap.qcow2")
    assert decide(replace(FACTS, disks=(disk,)), ["a"], CARDS).copies[0].disks[0].backing is None


def test_the_seed_of_cloud_init_is_copied_and_foreign_isos_are_shared() -> None:
    seed = SourceDisk("sda", "/pool/web-seed.iso", "web-seed.iso", None, writable=False)
    iso = SourceDisk("sdb", "/srv/tools.iso", None, None, writable=False)
    memory = replace(REMEMBERED, volumes=("web-0.qcow2", "web-seed.iso"))
    made = decide(replace(FACTS, disks=(DISK, seed, iso), remembered=memory), ["a"], CARDS).copies[0].disks
    assert [(d.volume, d.raw) for d in made] == [("a-0.qcow2", False), ("a-seed.iso", True)]


def changed(xml: str) -> SourceFacts:
    return replace(FACTS, xml=XML.replace("</devices>", f"{xml}</devices>"))


@pytest.mark.parametrize(
    ("facts", "kind", "text"),
    [
        (replace(FACTS, state="paused"), ConflictError, "web is paused"),
        (replace(FACTS, remembered=None), RefusedError, "another tool"),
        (replace(FACTS, agent=False), RefusedError, "no guest agent"),
        (replace(FACTS, answers=False), RefusedError, "does not answer"),
        (replace(FACTS, qemu=(7, 2, 0)), UnsupportedError, "corrupts"),
        (replace(FACTS, free=100), RefusedError, "no space"),
        (replace(FACTS, disks=(replace(DISK, volume=None, path="/dev/sdb"),)), RefusedError, "vda of web is /dev/sdb"),
        (changed("<hostdev/>"), RefusedError, "a device of the host"),
        (changed("<tpm/>"), RefusedError, "a TPM"),
        (changed("<interface><model type='e1000'/></interface>"), UnsupportedError, "e1000"),
        (
            replace(FACTS, remembered=replace(REMEMBERED, spec={**SPEC, "guest": "windows"})),
            UnsupportedError,
            "another system than Linux",
        ),
        (
            replace(FACTS, remembered=replace(REMEMBERED, spec={**SPEC, "nics": [{"forward": ["1:2"]}]})),
            RefusedError,
            "one VM only",
        ),
    ],
)
def test_what_cannot_be_copied_is_refused(facts: SourceFacts, kind: type[VmkitError], text: str) -> None:
    with pytest.raises(kind, match=text):
        decide(facts, ["a"], CARDS)


def test_names_are_checked_before_anything_else() -> None:
    for names, kind in ((["a", "a"], SpecError), (["db"], ConflictError), (["-x"], SpecError), ([], SpecError)):
        with pytest.raises(kind):
            decide(FACTS, names, CARDS)


# -- many at once


def test_what_fails_for_one_keeps_no_other_from_its_turn() -> None:
    events: list[Event] = []
    most = threading.Semaphore(3)

    def act(name: str, reporter: Reporter) -> int:
        assert most.acquire(blocking=False)  # never more than `workers`
        try:
            time.sleep(0.01)
            reporter(Note(f"about {name}"))
            if name == "4":
                raise NotFoundError("gone", hint="look")
            return int(name)
        finally:
            most.release()

    names = [str(i) for i in range(12)]
    outcome = for_each(names, act, workers=3, reporter=events.append)
    assert outcome.done == {str(i): i for i in range(12) if i != 4}
    assert list(outcome.done) == [n for n in names if n != "4"]
    assert sum(isinstance(e, Finished) for e in events) == 11
    with pytest.raises(EffectError, match="counting failed for 1 of 12; done: 0, 1") as caught:
        outcome.check("counting")
    assert caught.value.details == ("4: gone",)
    assert caught.value.hint == "look"


def test_a_single_failure_is_raised_as_it_is() -> None:
    error = NotFoundError("gone")
    with pytest.raises(NotFoundError):
        Outcome({}, {"a": error}).check("it")
    assert Outcome({"a": 1}).check("it") == {"a": 1}


def test_a_bug_is_not_swallowed() -> None:
    def act(name: str, _reporter: Reporter) -> None:
        raise ZeroDivisionError(name)

    with pytest.raises(ZeroDivisionError):
        for_each(["a", "b"], act, workers=2)


def test_after_ctrl_c_nothing_new_is_begun() -> None:
    begun: list[str] = []

    def act(name: str, _reporter: Reporter) -> None:
        begun.append(name)
        if name == "1":
            signal.raise_signal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else (
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            )
        time.sleep(0.1)

    outcome = for_each([str(i) for i in range(20)], act, workers=2)
    assert len(begun) < 8
    assert set(outcome.failed) == {str(i) for i in range(20)} - set(begun)
    with pytest.raises((CancelledError, EffectError)):
        outcome.check("it")
