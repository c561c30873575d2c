"""What users are told after errors of libvirt and QEMU: texts as these programs write them."""

from __future__ import annotations

import re

import libvirt
import pytest

from vmkit.cli.main import COMMANDS
from vmkit.errors import ConflictError, EffectError, NotFoundError, RefusedError, VmkitError
from vmkit.hypervisor import advice as table
from vmkit.hypervisor.advice import advice
from vmkit.hypervisor.errors import translate

SAID = [
    (
        "internal error: process exited while connecting to monitor: qemu-system-x86_64: -blockdev "
        '{"node-name":"x"}: Failed to get "write" lock Is another process using the image [/pool/web1-0.qcow2]?',
        "another VM or program has this disk open",
    ),
    ("Cannot access storage file '/pool/web1-0.qcow2': No such file or directory", "/pool/web1-0.qcow2 is gone"),
    ("Cannot access storage file '/d' (as uid:64055, gid:64055): Permission denied", "namei -l /d"),
    ("internal error: ... Could not open '/root/a.qcow2': Permission denied", "QEMU may not open /root/a.qcow2"),
    ("Requested operation is not valid: network 'default' is not active", "virsh net-start default"),
    ("Network not found: no network with matching name 'x'", "vmkit network list"),
    ("Unable to get index for interface br7: No such device", "no interface br7"),
    ("Cannot get interface MTU on 'br7': No such device", "no interface br7"),
    ("qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory", "too little memory"),
    ("Could not access KVM kernel module: No such file or directory", "--accel tcg"),
    (
        "unsupported configuration: guest and host CPU are not compatible: Host CPU does not provide: avx512f",
        "--cpu auto",
    ),
    ("Guest agent is not responding: QEMU guest agent is not connected", "vmkit wait web1 --for agent"),
    (
        "internal error: unable to execute QEMU agent command 'guest-exec': Command guest-exec has been disabled",
        "qemu-ga.conf",
    ),
    ("Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatch)", "vmkit jobs"),
    ("Requested operation is not valid: domain is not running", "vmkit start web1"),
    (
        "Requested operation is not valid: PCI device 0000:01:10.0 is in use by driver QEMU, domain db1",
        "vmkit device detach db1 0000:01:10.0",
    ),
    ("internal error: No more available PCI slots", "vmkit stop web1"),
    ("internal error: process exited while connecting to monitor", "/var/log/libvirt/qemu/web1.log"),
    ("Cannot recv data: Connection reset by peer", "journalctl -u libvirtd"),
    ("cannot extend file '/pool/x': No space left on device", "df -h"),
]


@pytest.mark.parametrize(("text", "expected"), SAID, ids=lambda v: v[:40])
def test_a_known_text_has_a_next_step(text: str, expected: str) -> None:
    assert expected in (advice(text, "start of web1") or "")


def test_an_unknown_text_has_none() -> None:
    assert advice("internal error: the moon is full", "start of web1") is None


def test_where_no_vm_is_named_the_command_says_name() -> None:
    assert advice("domain is not running", "state") == "vmkit start NAME"
    assert advice("domain is not running", "start of ../x") == "vmkit start NAME"


@pytest.mark.parametrize("row", table._TABLE, ids=lambda r: r[0][:30])
def test_each_hint_takes_no_more_than_its_pattern_gives(row: tuple[str, str]) -> None:
    pattern, hint = row
    groups = re.compile(pattern).groups
    assert hint.format("", *["x"] * groups, vm="web1")
    for command in re.findall(r"vmkit ([a-z]+)", hint):
        assert command in COMMANDS or command == "gives", hint


def failed(code: int, text: str) -> VmkitError:
    error = libvirt.libvirtError(text)
    error.err = (code, libvirt.VIR_FROM_QEMU, text, 2, "", None, None, -1, -1)
    return translate(error, "start of web1")


@pytest.mark.parametrize(
    ("code", "text", "kind", "hint"),
    [
        (libvirt.VIR_ERR_INTERNAL_ERROR, "No more available PCI slots", EffectError, "vmkit stop web1"),
        (libvirt.VIR_ERR_OPERATION_INVALID, "domain is not running", ConflictError, "vmkit start web1"),
        (libvirt.VIR_ERR_NO_NETWORK, "Network not found: x", NotFoundError, "vmkit network list"),
        (libvirt.VIR_ERR_OPERATION_DENIED, "read only access prevents x", RefusedError, "run as root"),
        (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, "Guest agent is not responding: x", EffectError, "--for agent"),
    ],
)
def test_errors_of_libvirt_carry_it(code: int, text: str, kind: type[VmkitError], hint: str) -> None:
    error = failed(code, text)
    assert type(error) is kind
    assert error.message == f"start of web1: {text}"
    assert hint in (error.hint or "")
