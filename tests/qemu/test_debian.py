"""The Debian image with a seed: first boot, key and user-data, programs, files both ways, and another boot."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vmkit.client import Client
from vmkit.errors import ConflictError, EffectError, NotFoundError, RefusedError, SpecError
from vmkit.image import keys, seed_iso
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab
from vmkit.system.journal import records
from vmkit.vm.access.api import By
from vmkit.vm.api import Created
from vmkit.vm.describe import describe
from vmkit.vm.machine import Vm
from vmkit.vm.readiness import Layer

WAIT = 900.0
"""Seconds for a boot that takes 40 on a quiet machine, and ten times that where others work."""

pytestmark = pytest.mark.timeout(2 * WAIT)


@pytest.fixture
def client(client_h1: Client) -> Client:
    return client_h1


def vmkit(*argv: str, client: Client, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "vmkit", "-c", client.host.uri, *argv]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=300, check=False)


def inside(vm: Vm, script: str) -> str:
    """What a script prints in the guest, by the agent."""
    done = vm.guest_exec(["sh", "-c", script], timeout=120)
    assert done.status == 0, done.stderr
    return done.stdout.strip()


def test_first_boot(debian_made: Created, debian_vm: Vm, client: Client) -> None:
    assert inside(debian_vm, "cat /etc/vmkit-test; stat -c %a /etc/vmkit-test") == "from user-data\n640"
    assert inside(debian_vm, "cat /var/lib/vmkit-runs") == "ran"
    assert inside(debian_vm, "hostname") == debian_vm.name
    assert inside(debian_vm, "cloud-init query instance_id") == f"vmkit-{debian_vm.uuid}"
    memory = debian_vm.remembered()
    assert memory is not None
    assert memory.access is not None
    assert memory.access.user == "debian"


def test_no_secret_is_where_others_read(debian_made: Created, debian_vm: Vm, client: Client) -> None:
    assert debian_made.password is not None
    # It is the password: openssl makes the same hash of it, with the salt that the guest has.
    hashed = inside(debian_vm, "grep ^debian: /etc/shadow").split(":")[1]
    salt = hashed.split("$")[2]
    again = subprocess.run(
        ["openssl", "passwd", "-6", "-salt", salt, "-stdin"],
        input=debian_made.password,
        capture_output=True,
        text=True,
        check=True,
    )
    assert again.stdout.strip() == hashed
    xml = debian_vm.domain.xml()
    for secret in (debian_made.password, hashed, "from user-data"):
        assert secret not in xml
    pool = client.host.pool("vmkit")
    volume = pool.folder / f"{debian_vm.name}-seed.iso"
    assert volume.stat().st_mode & 0o777 == 0o600
    files = seed_iso.read(pool.read(volume.name))
    assert debian_made.password.encode() not in b"".join(files.values())
    assert keys.own_key_path().stat().st_mode & 0o077 == 0
    assert records("create") == []


def test_ssh_finds_user_address_and_key(debian_vm: Vm, client: Client, debian_key: Path) -> None:
    server = client.guests.ssh(debian_vm.name, deadline=WAIT)
    assert (server.user, server.known, server.keys) == ("debian", True, (keys.own_key_path(),))
    done = vmkit("ssh", debian_vm.name, "--", "sh", "-c", 'whoami; echo "$1"; exit 7', "sh", "a  b", client=client)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"debian\na  b\n", b"")
    printed = vmkit("ssh", debian_vm.name, "--print", client=client).stdout.decode()
    assert printed.startswith("ssh ")
    other = vmkit("ssh", debian_vm.name, "-i", str(debian_key), "--", "sudo", "-n", "id", "-u", client=client)
    assert other.stdout == b"0\n", other.stderr
    wrong = vmkit("exec", debian_vm.name, "--by", "ssh", "-u", "root", "--", "true", client=client)
    assert wrong.returncode != 0


def test_a_changed_host_key_is_refused(debian_vm: Vm, client: Client) -> None:
    server = client.guests.ssh(debian_vm.name, deadline=WAIT)
    right = server.known_hosts.read_text()
    kinds = [line.split()[1] for line in right.splitlines()]
    forged = keys.make_own_key().split()[1]
    assert "ssh-ed25519" in kinds
    server.known_hosts.write_text(f"{server.alias} ssh-ed25519 {forged}\n")
    argv = server.argv(["true"], quiet=True)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr or "IDENTIFICATION HAS CHANGED" in done.stderr
    server.known_hosts.write_text(right)


@pytest.mark.parametrize("by", [By.AGENT, By.SSH])
def test_programs(debian_vm: Vm, client: Client, by: By) -> None:
    def run(*argv: str, **more: Any) -> Any:
        return client.guests.run(debian_vm.name, argv, by=by, **more)

    assert run("id", "-un").stdout.strip() == ("root" if by is By.AGENT else "debian")
    assert run("sh", "-c", "echo out; echo err >&2; exit 3").status == 3
    assert run("printf", "%s|", "a b", "$HOME", "'\"").stdout == "a b|$HOME|'\"|"
    assert run("cat", stdin=b"in\nout").stdout == "in\nout"
    assert run("wc", "-c", stdin=b"x" * 300_000).stdout.strip() == "300000"
    with pytest.raises(RefusedError, match="no program"):
        run()


def test_exec_on_the_command_line(debian_vm: Vm, client: Client) -> None:
    done = vmkit("exec", debian_vm.name, "-i", "--", "sha256sum", client=client, stdin=b"abc")
    assert done.stdout.split()[0].decode() == hashlib.sha256(b"abc").hexdigest()
    assert vmkit("exec", debian_vm.name, "--", "sh", "-c", "exit 9", client=client).returncode == 9


@pytest.mark.parametrize("by", [By.AGENT, By.SSH])
def test_files_both_ways(debian_vm: Vm, client: Client, by: By, tmp_path: Path) -> None:
    name = debian_vm.name
    big = tmp_path / "big file"
    big.write_bytes(os.urandom(3_000_001))
    big.chmod(0o751)
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "a").write_text("a")
    (tree / "link").symlink_to("sub/a")
    there = f"/var/tmp/{by.value}"
    client.guests.run(name, ["mkdir", there], by=by)
    done = client.guests.copy([str(big), str(tree)], f"{name}:{there}", by=by)
    assert [(d.files, d.bytes >= 3_000_001) for d in done] == [(1, True), (1, False)]
    seen = client.guests.run(name, ["sha256sum", f"{there}/big file"], by=by).stdout
    assert seen.split()[0] == hashlib.sha256(big.read_bytes()).hexdigest()
    assert inside(debian_vm, f"stat -c %a '{there}/big file'; readlink {there}/tree/link; ls -A {there}") == (
        "751\nsub/a\nbig file\ntree"
    )
    back = tmp_path / "back"
    back.mkdir()
    client.guests.copy([f"{name}:{there}/big file", f"{name}:{there}/tree"], str(back), by=by)
    assert (back / "big file").read_bytes() == big.read_bytes()
    assert (back / "big file").stat().st_mode & 0o777 == 0o751
    assert (back / "tree" / "sub" / "a").read_text() == "a"
    assert (back / "tree" / "link").readlink() == Path("sub/a")
    assert sorted(p.name for p in back.iterdir()) == ["big file", "tree"]
    with pytest.raises(NotFoundError, match="in the guest"):
        client.guests.copy([f"{name}:/no/such/file"], str(back), by=by)
    if by is By.SSH:
        with pytest.raises(EffectError) as caught:
            client.guests.copy([str(big)], f"{name}:/etc/no", by=by)
        assert caught.value.message.startswith("cannot write /etc/no on debian@")
    inside(debian_vm, f"rm -r {there}; ls -A /var/tmp/vmkit-* 2>/dev/null; true")


def test_copy_on_the_command_line(debian_vm: Vm, client: Client, tmp_path: Path) -> None:
    name = debian_vm.name
    (tmp_path / "a").write_text("x")
    done = vmkit("copy", str(tmp_path / "a"), f"{name}:/var/tmp/b", "-o", "json", client=client)
    assert json.loads(done.stdout)[0]["target"] == "/var/tmp/b"
    done = vmkit("copy", f"{name}:/var/tmp/b", str(tmp_path / "c"), client=client)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "c").read_text() == "x"
    wrong = vmkit("copy", str(tmp_path / "a"), str(tmp_path / "b"), client=client)
    assert (wrong.returncode, b"neither side is a guest" in wrong.stderr) == (2, True)
    inside(debian_vm, "rm /var/tmp/b")


def test_another_boot_runs_nothing_again_and_has_its_seed(debian_vm: Vm, client: Client) -> None:
    before = inside(debian_vm, "cat /proc/sys/kernel/random/boot_id")
    host_keys = inside(debian_vm, "cat /etc/ssh/ssh_host_*_key.pub")
    debian_vm.reboot()

    def other_boot() -> bool:
        try:
            return inside(debian_vm, "cat /proc/sys/kernel/random/boot_id") != before
        except (EffectError, AssertionError):
            return False

    until(other_boot)
    debian_vm.wait(layers=[Layer.AGENT, Layer.ADDRESS, Layer.SSH, Layer.CLOUD_INIT], deadline=WAIT)
    assert inside(debian_vm, "cat /var/lib/vmkit-runs") == "ran"
    assert inside(debian_vm, "cat /etc/ssh/ssh_host_*_key.pub") == host_keys
    assert inside(debian_vm, "cloud-init query instance_id") == f"vmkit-{debian_vm.uuid}"
    device = inside(debian_vm, "readlink -f /dev/disk/by-label/cidata")
    assert inside(debian_vm, f"blockdev --getro {device}") == "1"
    assert vmkit("ssh", debian_vm.name, "--", "hostname", client=client).stdout.decode().strip() == debian_vm.name
    disk = describe(debian_vm.domain.xml()).disks[-1]
    assert (disk.readonly, disk.source) == (True, str(client.host.pool("vmkit").folder / f"{debian_vm.name}-seed.iso"))


def until(probe: Callable[[], bool], seconds: float = WAIT) -> None:
    end = time.monotonic() + seconds
    while not probe():
        assert time.monotonic() < end
        time.sleep(1)


@pytest.fixture
def empty_handed(client: Client) -> Iterator[Client]:
    """Of the VM `off` nothing is left in the pool."""
    yield client
    pool = client.host.pool("vmkit")
    pool.refresh()
    assert [name for name in pool.names() if name.startswith("off")] == []


def test_delete_takes_the_seed_along(debian: Image, empty_handed: Client, client: Client) -> None:
    made = client.vms.create({"name": "off", "image": debian.name, "memory": "256M", "nics": []}, start=False)
    assert "volume off-seed.iso" in made.vm.delete()
    data = {"password": "generate", "user_data": {"password": "x"}}
    with pytest.raises(SpecError, match="is set here too"):
        client.vms.create({"name": "off", "image": debian.name, "cloud_init": data})


def test_a_vm_that_is_off_has_no_inside(debian: Image, empty_handed: Client, client: Client) -> None:
    made = client.vms.create({"name": "off", "image": debian.name, "memory": "256M", "nics": []}, start=False)
    with pytest.raises(ConflictError, match="shut off"):
        client.guests.run("off", ["true"])
    with pytest.raises(ConflictError, match="shut off"):
        client.guests.ssh("off")
    made.vm.delete()


def test_files_of_a_guest_without_a_network(micro: Image, client: Client, tmp_path: Path, pair: Lab) -> None:
    spec = {"name": "alone", "image": micro.name, "memory": "192M", "nics": []}
    made = client.vms.create(spec, wait=True, deadline=WAIT)
    try:
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "f").write_bytes(os.urandom(200_000))
        client.guests.copy([str(tmp_path / "d")], "alone:/root/")
        client.guests.copy(["alone:/root/d/f"], str(tmp_path / "g"))
        client.guests.copy(["alone:/root/d"], str(tmp_path / "e"))
        assert (tmp_path / "g").read_bytes() == (tmp_path / "d" / "f").read_bytes() == (tmp_path / "e/f").read_bytes()
        with pytest.raises(RefusedError, match="no network card"):
            client.guests.ssh("alone", user="root")
    finally:
        made.vm.delete(force=True)
