"""The Vagrant box's files, and which of the installed boxes is the one that is wanted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmkit.lab import box
from vmkit.lab.box_files import Edit, debugfs_script, edits, free_number, versions_of

USERS = "root:x:0:0:root:/root:/bin/bash\nlab:x:1000:1000::/home/lab:/bin/sh\n"
GROUP = "root:x:0:\nshadow:x:42:\nlibvirt:x:105:\nkvm:x:106:lab\nlab:x:1000:\nbuild:x:1001:\n"
DATABASES = {
    "passwd": USERS,
    "group": GROUP,
    "shadow": "root:*:19000:0:99999:7:::\n",
    "gshadow": "root:*::\nlibvirt:!::\nkvm:!::lab\n",
}
HOST_KEY = ("private\n", "ssh-ed25519 AAAA vmkit box\n")


def made(databases: dict[str, str] | None = None) -> dict[str, Edit]:
    return {e.path: e for e in edits(databases or DATABASES, ["ssh-rsa AAAA one ", "ssh-ed25519 BBBB two"], HOST_KEY)}


def test_account_has_a_number_that_neither_users_nor_groups_have() -> None:
    assert free_number(USERS, GROUP) == 1002
    files = made()
    assert files["/etc/passwd"].content == USERS + "vagrant:x:1002:1002:Vagrant:/home/vagrant:/bin/bash\n"
    assert files["/home/vagrant"].owner == files["/home/vagrant/.ssh"].owner == 1002
    assert files["/home/vagrant/.ssh/authorized_keys"].owner == 1002


def test_account_joins_the_groups_of_the_hypervisor() -> None:
    files = made()
    assert "libvirt:x:105:vagrant\nkvm:x:106:lab,vagrant\n" in files["/etc/group"].content
    assert "libvirt:!::vagrant\nkvm:!::lab,vagrant\nvagrant:!::\n" in files["/etc/gshadow"].content


def test_no_password_but_keys_and_sudo() -> None:
    files = made()
    assert files["/etc/shadow"].content.endswith("vagrant:*:19000:0:99999:7:::\n")
    assert (files["/etc/shadow"].mode, files["/etc/shadow"].group) == (0o100640, 42)
    assert files["/home/vagrant/.ssh/authorized_keys"].content == "ssh-rsa AAAA one\nssh-ed25519 BBBB two\n"
    assert files["/home/vagrant/.ssh/authorized_keys"].mode == 0o100600
    assert (files["/etc/sudoers.d/vagrant"].mode, files["/etc/sudoers.d/vagrant"].owner) == (0o100440, 0)


def test_a_disk_that_has_the_account_gets_it_once() -> None:
    first = made()
    again = made({name: first[f"/etc/{name}"].content for name in DATABASES})
    for name in DATABASES:
        own = [line for line in again[f"/etc/{name}"].content.splitlines() if line.startswith("vagrant:")]
        assert len(own) == 1, name
    assert "kvm:x:106:lab,vagrant\n" in again["/etc/group"].content


def test_commands_of_debugfs_replace_files_and_make_folders() -> None:
    script = debugfs_script([Edit("/etc/hosts", 0o100644, replaces=True), Edit("/home/v", 0o40755, 7)], Path("/s"))
    assert script.splitlines() == [
        "cd /etc",
        "rm hosts",
        "write /s/0 hosts",
        "set_inode_field hosts mode 0100644",
        "set_inode_field hosts uid 0",
        "set_inode_field hosts gid 0",
        "cd /home",
        "mkdir v",
        "set_inode_field v mode 040755",
        "set_inode_field v uid 7",
        "set_inode_field v gid 7",
    ]


def test_versions_compare_as_numbers() -> None:
    assert versions_of(["9.2", "10.1", "metadata_url", "10.1.3", ""]) == ["10.1.3", "10.1", "9.2"]


@pytest.fixture
def boxes(tmp_path: Path) -> Path:
    for version, key in (("20260101.1100000", "old"), ("20260102.1090000", "new")):
        folder = tmp_path / "vmkit-VAGRANTSLASH-kvm-host" / version / "libvirt"
        folder.mkdir(parents=True)
        (folder / "metadata.json").write_text(json.dumps({"provider": "libvirt", "vmkit": key}))
    (tmp_path / "vmkit-VAGRANTSLASH-kvm-host" / "metadata_url").write_text("file:///gone")
    return tmp_path


def test_only_the_newest_box_counts_as_installed(boxes: Path) -> None:
    assert box.installed(boxes, "new") == "20260102.1090000"
    assert box.installed(boxes, "old") is None  # `vagrant up` would take the other one
    assert box.keys_in(boxes) == {"old", "new"}
    assert box.installed(boxes / "none", "new") is None


def test_box_of_another_maker_or_half_a_box_has_no_key(boxes: Path) -> None:
    metadata = boxes / "vmkit-VAGRANTSLASH-kvm-host/20260102.1090000/libvirt/metadata.json"
    metadata.write_text("{")
    assert box.installed(boxes, "new") is None
    metadata.write_text("{}")
    assert box.installed(boxes, "new") is None


def test_key_changes_with_whatever_is_in_the_box() -> None:
    source = box.Source(Path("d"), Path("k"), Path("i"), "quiet", "digest")
    keys = {
        box.key_of(source, ("a",)),
        box.key_of(source, ("b",)),
        box.key_of(box.Source(source.disk, source.kernel, source.initrd, "quiet", "other"), ("a",)),
        box.key_of(box.Source(source.disk, source.kernel, source.initrd, "loud", "digest"), ("a",)),
    }
    assert len(keys) == 4
    assert box.key_of(source, ("a",)) in keys
