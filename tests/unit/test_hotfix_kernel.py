"""Patches of the kernel: their files, when they are refused, and the way in and out, on a kernel that is made up."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from vmkit.errors import (
    ConflictError,
    DeadlineError,
    EffectError,
    IndeterminateError,
    NotFoundError,
    RefusedError,
    SpecError,
    UnsupportedError,
    VmkitError,
)
from vmkit.hotfix import history, undo
from vmkit.hotfix.api import Hotfixes
from vmkit.hotfix.kernel import image as images
from vmkit.hotfix.kernel import judge
from vmkit.hotfix.kernel.facts import KernelFacts
from vmkit.hotfix.kernel.image import OFF, ON, KernelImage, change_for, take_out
from vmkit.hotfix.kernel.make import make_kernel_patch, module_name, names_header
from vmkit.hotfix.kernel.module import note_build_id, read_module
from vmkit.hotfix.kernel.recovery import recover
from vmkit.hotfix.manifest import Edit, Livepatch, Patch, Pattern, parse, render
from vmkit.hotfix.plans import Action
from vmkit.hotfix.transaction import Transaction
from vmkit.hypervisor.host import Host
from vmkit.system.boot import boot_id
from vmkit.system.journal import journalled, records, taken_over
from vmkit.system.livepatch import LiveKernel, PatchState

BUILD = "79599aee45dc5c6cd4397c14de51ef213a27ac06"
CODE = bytes.fromhex("f30f1efa 0f1f440000 53 4883ec18")
EXPECTED = Pattern.parse("f3 0f 1e fa ?? ?? ?? ?? ?? 53 48 83 ec 18", path="expected")
PLACE = 0xFFFFFFFFC0800A90
PATCH = Patch(
    "cpuid",
    "another name for the CPU",
    "",
    "kernel",
    (BUILD,),
    (Edit(None, "kvm_emulate_cpuid", 0, EXPECTED, 0, b""),),
    livepatch=Livepatch("6.12.1-test", "kvm", "vmkit_cpuid", b"\x7fELF" + bytes(range(200))),
)
FACTS = KernelFacts(
    "6.12.1-test",
    "boot-1",
    available=True,
    build_id=BUILD,
    places={"kvm_emulate_cpuid": [PLACE]},
    traceable=frozenset({"kvm_emulate_cpuid"}),
    held=(CODE,),
    built="ab" * 20,
)
LOADED = replace(FACTS, state=PatchState(loaded=True, enabled=True), own_build_id="ab" * 20)


def test_a_patch_file_comes_back_as_it_was_written() -> None:
    text = render(PATCH)
    assert parse(text) == PATCH
    assert PATCH.functions == ("kvm_emulate_cpuid",)


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ('target = "kernel"', 'target = "qemu"', "target"),
        ("[livepatch]", "[signature]", "signature"),
        ('release = "6.12.1-test"', 'release = "../../etc"', "livepatch.release"),
        ('object = "kvm"', 'object = "kvm; rm"', "livepatch.object"),
        ('name = "vmkit_cpuid"', f'name = "{"n" * 56}"', "livepatch.name"),
        ('sha256 = "', 'sha256 = "0', "livepatch.data"),
        ('data = "', 'data = "!', "livepatch.data"),
        ('data = "', 'data = "AAAA', "livepatch.data"),
        ('symbol = "kvm_emulate_cpuid"', 'symbol = "kvm.emulate"', "edits[0].symbol"),
        ('symbol = "kvm_emulate_cpuid"', 'symbol = "kvm_emulate_cpuid", replacement = "90"', "edits[0]"),
        ('symbol = "kvm_emulate_cpuid"', 'symbol = "f", address = 4096', "edits[0]"),
        (str(EXPECTED), "?? ??", "edits[0].expected"),
        ('title = "', 'room = "0x1000+0x1000"\ntitle = "', "target"),
        ('name = "vmkit_cpuid"', "", "livepatch"),
    ],
)
def test_what_is_unsound_is_refused_with_its_field(old: str, new: str, path: str) -> None:
    text = render(PATCH)
    assert old in text
    with pytest.raises(SpecError) as caught:
        parse(text.replace(old, new, 1))
    assert (caught.value.path or "") == path


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"available": False}, UnsupportedError, "no /sys/kernel/livepatch"),
        ({"release": "6.12.2"}, RefusedError, "this is 6.12.2"),
        ({"build_id": None}, NotFoundError, "kvm is not loaded"),
        ({"build_id": "cd" * 20}, RefusedError, "that of this kernel is cdcdcdcdcdcd"),
        ({"places": {"kvm_emulate_cpuid": []}}, RefusedError, "0 functions kvm_emulate_cpuid"),
        ({"places": {"kvm_emulate_cpuid": [1, 2]}}, RefusedError, "2 functions"),
        ({"traceable": frozenset()}, RefusedError, "ftrace does not reach it"),
        ({"others": {"kvm_emulate_cpuid": ["kpatch_x"]}}, ConflictError, "another livepatch: kpatch_x"),
        ({"held": (b"\xcc" + CODE[1:],)}, RefusedError, r"\+0x0 holds cc 0f 1e fa 0f 1f 44 00, not f3 0f 1e fa"),
        ({"state": PatchState(loaded=True, enabled=True, moving=True)}, ConflictError, "another edition"),
        ({"signed_only": "lockdown (integrity)"}, RefusedError, r"signed modules only \(lockdown"),
    ],
)
def test_when_it_is_refused(change: dict[str, object], error: type[VmkitError], says: str) -> None:
    with pytest.raises(error, match=says):
        judge.needed(Action.APPLY, PATCH, replace(FACTS, **change))  # type: ignore[arg-type]


def test_what_is_to_be_done() -> None:
    assert judge.needed(Action.APPLY, PATCH, FACTS)
    assert judge.needed(Action.APPLY, PATCH, replace(FACTS, signed_only="sig_enforce", signed=True))
    assert not judge.needed(Action.APPLY, PATCH, LOADED)
    assert judge.needed(Action.REVERT, PATCH, LOADED)
    assert not judge.needed(Action.REVERT, PATCH, FACTS)
    with pytest.raises(ConflictError, match="taken out at this moment"):
        judge.needed(Action.APPLY, PATCH, replace(LOADED, state=PatchState(loaded=True, moving=True)))
    plan = judge.plan_for(Action.APPLY, PATCH, FACTS, ["g1", "g2"], some=True)
    assert [s.verb for s in plan.steps] == ["record", "pause", "compare", "load", "wait", "resume"]
    assert judge.plan_for(Action.REVERT, PATCH, LOADED, [], some=True).steps[-1].verb == "unload"
    assert not judge.plan_for(Action.APPLY, PATCH, LOADED, [], some=False).steps


@pytest.mark.parametrize(
    ("facts", "boot", "state"),
    [
        (FACTS, "", "not patched"),
        (LOADED, "boot-1", "patched"),
        (replace(LOADED, own_build_id="cd" * 20), "boot-1", "other edition"),
        (replace(LOADED, state=PatchState(loaded=True, enabled=True, moving=True)), "", "in transition"),
        (FACTS, "boot-0", "gone"),
        (replace(FACTS, release="6.13"), "boot-0", "gone"),
        (FACTS, "boot-1", "gone"),
        (replace(FACTS, release="6.13"), "", "other build"),
        (replace(FACTS, held=(b"\xcc" * 14,)), "", "other bytes"),
    ],
)
def test_the_status(facts: KernelFacts, boot: str, state: str) -> None:
    assert judge.standing(PATCH, facts, boot)[0] == state


class MadeUp(LiveKernel):
    """A kernel whose tasks take `looks` looks to go over; in `stuck` directions they never do."""

    def __init__(self, looks: int = 3, stuck: tuple[bool, ...] = ()) -> None:
        super().__init__()
        self.looks, self.stuck = looks, stuck
        self.now = PatchState(loaded=False)
        self.left = 0
        self.did: list[str] = []

    def state(self, name: str) -> PatchState:
        if self.now.moving and self.now.enabled not in self.stuck:
            self.left -= 1
            if self.left <= 0:
                self.now = replace(self.now, moving=False)
        return self.now

    def _begin(self, what: str, *, on: bool) -> None:
        self.did.append(what)
        self.now, self.left = PatchState(loaded=True, enabled=on, moving=True), self.looks

    def load(self, name: str, data: bytes) -> None:
        assert not self.now.loaded
        self._begin("load", on=True)

    def enable(self, name: str, *, on: bool) -> None:
        self._begin("on" if on else "off", on=on)

    def unload(self, name: str) -> bool:
        assert not self.now.enabled
        assert not self.now.moving
        self.did.append("unload")
        self.now = PatchState(loaded=False)
        return True

    def memory(self, address: int, length: int) -> bytes:
        assert (address, length) == (PLACE, len(CODE))
        return CODE

    def lagging(self, *, on: bool) -> list[str]:
        return ["busy (task 7)"]


def carry_out(kernel: MadeUp, *, on: bool) -> Transaction:
    image = KernelImage(kernel, PATCH, FACTS.places)
    transaction = Transaction("hotfix cpuid", [change_for(image, on=on)], [], hook=lambda _: None, max_pause=0.3)
    try:
        transaction.run()
    finally:
        image.tidy()
    return transaction


def test_the_way_in_and_out() -> None:
    kernel = MadeUp()
    assert carry_out(kernel, on=True).outcome.verified
    assert kernel.now == PatchState(loaded=True, enabled=True)
    assert carry_out(kernel, on=False).outcome.verified
    assert kernel.did == ["load", "off", "unload"]
    assert not take_out(kernel, PATCH)


def test_a_task_that_stays_behind_turns_it_round() -> None:
    kernel = MadeUp(stuck=(True,))
    with pytest.raises(EffectError, match="not every task went over") as caught:
        carry_out(kernel, on=True)
    assert caught.value.left == "every byte is as it was before and every guest runs again"
    assert (kernel.did, kernel.now) == (["load", "off", "unload"], PatchState(loaded=False))
    kernel = MadeUp()
    carry_out(kernel, on=True)
    kernel.stuck = (False,)
    with pytest.raises(EffectError, match="not every task went over"):
        carry_out(kernel, on=False)
    assert (kernel.did, kernel.now) == (["load", "off", "on"], PatchState(loaded=True, enabled=True))


def test_what_cannot_be_turned_round_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "BACK_SECONDS", 0.05)
    monkeypatch.setattr(images, "PATIENCE_SECONDS", 0.05)
    kernel = MadeUp(stuck=(True, False))
    image = KernelImage(kernel, PATCH, FACTS.places)
    transaction = Transaction("hotfix cpuid", [change_for(image, on=True)], [], hook=lambda _: None, max_pause=0.05)
    with pytest.raises(EffectError):
        transaction.run()
    assert not transaction.outcome.clean
    with pytest.raises(EffectError, match="is still there"):
        take_out(kernel, PATCH)
    kernel.stuck = ()
    assert take_out(kernel, PATCH)
    assert kernel.now == PatchState(loaded=False)
    with pytest.raises(DeadlineError, match="not every task"):
        KernelImage(MadeUp(stuck=(True,)), PATCH, {}).write(0, ON)
    assert image.read(0, 1) == OFF


def test_the_files_of_a_kernel_are_read(tmp_path: Path) -> None:
    code = tmp_path / "proc/kcore"
    code.parent.mkdir()
    head = bytearray(64)
    struct.pack_into("<Q", head, 32, 64)
    struct.pack_into("<HH", head, 54, 56, 1)
    code.write_bytes(bytes(head) + struct.pack("<IIQQQQQQ", 1, 5, 120, PLACE - 1, 0, 20, 20, 0) + b"\0" + CODE)
    symbols = ("kvm_emulate_cpuid\t[kvm]", "kvm_emulate_cpuid\t[vmkit_cpuid]", "other\t[kvm]", "kvm_emulate_cpuid")
    (tmp_path / "proc/kallsyms").write_text("".join(f"{PLACE:x} T {symbol}\n" for symbol in symbols))
    module = tmp_path / "sys/module/kvm"
    (module / "notes").mkdir(parents=True)
    (module / "initstate").write_text("live\n")
    (module / "notes/.note.gnu.build-id").write_bytes(struct.pack("<III", 4, 20, 3) + b"GNU\0" + bytes.fromhex(BUILD))
    own = tmp_path / "sys/kernel/livepatch/vmkit_cpuid"
    (own / "kvm/kvm_emulate_cpuid,1").mkdir(parents=True)
    (own / "enabled").write_text("1\n")
    (own / "transition").write_text("0\n")
    kernel = LiveKernel(tmp_path)
    assert kernel.memory(PLACE, len(CODE)) == CODE
    with pytest.raises(RefusedError, match="does not show"):
        kernel.memory(PLACE + 8, len(CODE))
    assert kernel.addresses(["kvm_emulate_cpuid", "absent"], "kvm") == {"kvm_emulate_cpuid": [PLACE], "absent": []}
    assert note_build_id(kernel.notes("kvm") or b"") == BUILD
    assert kernel.notes("absent") is None
    assert kernel.traceable(["kvm_emulate_cpuid"], "kvm") is None
    assert kernel.patches_of("kvm_emulate_cpuid", "kvm") == ["vmkit_cpuid"]
    assert kernel.state("vmkit_cpuid") == PatchState(loaded=False, enabled=True)
    kernel.enable("vmkit_cpuid", on=False)
    assert not kernel.state("vmkit_cpuid").enabled
    assert kernel.signed_only() == ""
    (tmp_path / "sys/kernel/security").mkdir()
    (tmp_path / "sys/kernel/security/lockdown").write_text("none [integrity] confidentiality\n")
    assert kernel.signed_only() == "lockdown (integrity)"


def test_names_that_reach_the_compiler_are_names() -> None:
    assert names_header("kvm", ["a", "b_2"]).splitlines()[1] == "#define VMKIT_FUNCTIONS(each) each(a) each(b_2)"
    assert module_name("CVE-2026-1.x") == "vmkit_CVE_2026_1_x"
    for bad in ('kvm"', "a b", "", "a)", "1a"):
        with pytest.raises(SpecError):
            names_header("kvm", [bad])
    with pytest.raises(SpecError):
        module_name("n" * 60)


def test_what_it_cannot_be_made_from(tmp_path: Path) -> None:
    source = tmp_path / "fix.c"
    source.write_text("int f(void) { return 1; }\n")
    with pytest.raises(NotFoundError, match="no module 'kvm'"):
        make_kernel_patch(source, module="kvm", functions=["f"], patch_id="x", release="9.9.9", root=tmp_path)
    with pytest.raises(SpecError):
        make_kernel_patch(source, module="kvm", functions=["f()"], patch_id="x")
    with pytest.raises(RefusedError, match="no ELF file"):
        make_kernel_patch(source, module=str(source), functions=["f"], patch_id="x")
    packed = tmp_path / "kvm.ko.xz"
    packed.write_bytes(b"not xz")
    with pytest.raises(RefusedError, match="cannot be unpacked"):
        read_module(packed)


def test_a_kernel_that_cannot_be_patched_live_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.1.0\n")
    file = tmp_path / "cpuid.toml"
    file.write_text(render(PATCH))
    with Host.connect("test:///default") as host:
        hotfixes = Hotfixes(lambda: host, kernel=LiveKernel(tmp_path), allow_unsigned=True)
        for call in (hotfixes.check, hotfixes.apply):
            with pytest.raises(UnsupportedError, match=r"6\.1\.0 cannot be patched live"):
                call(file)
        assert hotfixes.revert(file).state == "not applied"


@pytest.mark.parametrize(
    ("action", "phase", "boot", "says", "stays"),
    [
        ("apply", "writing", boot_id(), "the livepatch was taken out", False),
        ("apply", "written", boot_id(), "all had been done and verified", True),
        ("revert", "writing", boot_id(), "the livepatch was taken out", False),
        ("revert", "written", boot_id(), "the livepatch was taken out", False),
        ("apply", "writing", "boot-0", "the machine has booted since", True),
    ],
)
def test_the_next_command_puts_right_what_was_killed(
    action: str, phase: str, boot: str, says: str, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path))
    undo.save("cpuid", render(PATCH), ())
    kernel = MadeUp()
    kernel.load("vmkit_cpuid", b"")
    told = {"boot": boot, "name": "vmkit_cpuid", "label": "the kernel"}
    with journalled("hotfix", "cpuid", phase, uri="test:///default", action=action, kernel=told, guests=[]) as entry:
        line = recover(entry, kernel)
    assert says in line
    assert line.startswith(f"{action} of patch cpuid was cut off; ")
    assert kernel.now.loaded is stays
    remembered = undo.recall("cpuid")
    assert remembered is not None
    assert bool(remembered.boot) is (stays and boot == boot_id())
    (event,) = history.read()
    assert (event.what, event.processes) == ("repaired", ("the kernel",))


def test_what_cannot_be_put_right_stays_in_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMKIT_HOME", str(tmp_path))
    monkeypatch.setattr(images, "PATIENCE_SECONDS", 0.05)
    undo.save("cpuid", render(PATCH), ())
    kernel = MadeUp(stuck=(True, False))
    kernel.load("vmkit_cpuid", b"")
    told = {"boot": boot_id(), "name": "vmkit_cpuid", "label": "the kernel"}
    data = {"uri": "test:///default", "action": "apply", "kernel": told, "guests": []}
    with (
        pytest.raises(IndeterminateError, match="is still there"),
        journalled("hotfix", "cpuid", "writing", **data) as e,
    ):
        recover(e, kernel)
    (record,) = records("hotfix")
    kernel.stuck = ()
    with taken_over(record) as entry:
        assert entry is not None
        assert "the livepatch was taken out" in recover(entry, kernel)
    assert not records("hotfix")
