"""A patch that was applied, and VMs that come later: started by vmkit, and migrated to another host."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from vmkit.client import Client
from vmkit.errors import VmkitError
from vmkit.hotfix import manifest
from vmkit.hotfix.api import Hotfixes
from vmkit.hotfix.manifest import Edit, Patch, Pattern, Range
from vmkit.hypervisor import newcomers
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab
from vmkit.progress import Note
from vmkit.system.procmem import mappings

QEMU = Path("/usr/bin/qemu-system-x86_64")
BEFORE, DURING = "0x010000ed", "0x020000ed"
"""The identification register of the `edu` device (QEMU's docs/specs/edu.rst: 0xRRrr00ed, major and minor revision)."""

BANDWIDTH = 16 * 2**20
"""Bytes a second: the guest's memory takes some seconds, so that a busy machine shows the order of things too."""


def spec(name: str) -> dict[str, object]:
    nics = [{"network": "lab"}]
    arguments = ["-device", "edu,addr=0x1e"]
    return {"name": name, "image": "micro", "memory": "128M", "accel": "tcg", "nics": nics, "qemu_args": arguments}


def by_way_of_new_memory(patch: Patch) -> Patch:
    """The same patch as a jump to new code, which says the other number and jumps back."""
    (edit,) = patch.edits
    assert edit.address is not None
    at = edit.address + edit.offset
    room = Range(-0x2000000, 0x1000)
    new = room.address + 64

    def jump(start: int, target: int) -> bytes:
        return b"\xe9" + (target - start - 5).to_bytes(4, "little", signed=True)

    code = edit.replacement + jump(new + 5, at + 5)
    there = Edit(new, "", 0, Pattern.of(bytes(len(code))), 0, code)
    return replace(patch, edits=(there, replace(edit, replacement=jump(at, new))), room=room)


def rooms(hotfixes: Hotfixes) -> list[int]:
    """How much memory for new code the processes have."""
    pids = [r.pid for r in hotfixes.status() if r.id == "edu-later" and r.pid]
    return [sum(m.end - m.start for m in mappings(p) if m.permissions == "r-xp" and not m.path) for p in pids]


def edu(client: Client, name: str) -> str:
    return client.vms.get(name).guest_exec(["edu-id"]).stdout.strip()


def test_vms_that_come_later_are_patched_before_they_run(
    pair: Lab, micro: Image, client_h1: Client, client_h2: Client, tmp_path: Path
) -> None:
    patch = tmp_path / "edu-later.toml"
    hotfixes = client_h1.hotfixes
    hotfixes.make(QEMU, find="b8 ed 00 00 01", replace="b8 ed 00 00 02", id="edu-later", path=patch)
    patch.write_text(manifest.render(by_way_of_new_memory(manifest.load(patch))))
    notes: list[str] = []
    try:
        client_h1.vms.create(spec("there"), wait=True, deadline=300.0)
        assert hotfixes.apply(patch, allow_unsigned=True, max_pause=60).state == "applied"
        client_h1.vms.create(spec("later"), wait=True, deadline=300.0)
        assert edu(client_h1, "later") == DURING
        assert {(r.guest, r.state) for r in hotfixes.status() if r.id == "edu-later"} == {
            ("there", "patched"),
            ("later", "patched"),
        }
        assert rooms(hotfixes) == [0x1000] * 2

        client_h1.migrations.migrate(
            "later",
            pair.host("h2").uri,
            bandwidth=BANDWIDTH,
            deadline=300.0,
            reporter=lambda e: notes.append(e.text) if isinstance(e, Note) else None,
        )
        assert any(n.startswith("later: edu-later put into its new process before it ran there") for n in notes), notes
        assert edu(client_h2, "later") == DURING
        assert [e.what for e in hotfixes.history() if e.id == "edu-later"] == [
            *("applied", "patched at start", "patched on arrival")
        ]

        assert hotfixes.revert("edu-later", max_pause=60).state == "reverted"
        assert client_h2.hotfixes.revert("edu-later", max_pause=60).state == "reverted"
        assert [edu(client_h1, "there"), edu(client_h2, "later")] == [BEFORE] * 2
        assert rooms(hotfixes) + rooms(client_h2.hotfixes) == [0] * 2
        assert newcomers.attendant() is None, "VMs that come now are not patched any more"
    finally:
        for client in (client_h1, client_h2):
            for row in client.vms.list():
                if row.name in ("there", "later"):
                    client.vms.get(row.name).delete(force=True)
            with suppress(VmkitError):
                client.hotfixes.revert("edu-later", max_pause=60)
