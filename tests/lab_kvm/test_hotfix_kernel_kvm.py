"""A function of kvm.ko is replaced under a running guest and given back: by what the guest sees, and its counter.

The livepatch module is built in a Debian tree with the host's kernel headers, made once by mmdebstrap (300 MB) and kept
with what labs keep.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab_kvm.conftest import KvmHost
from vmkit.errors import EffectError
from vmkit.hotfix.api import Hotfixes
from vmkit.hotfix.far.api import KILL_VARIABLE
from vmkit.image.tree import debootstrap
from vmkit.lab import cache
from vmkit.progress import silent
from vmkit.values import Bytes

NAME = "patched"
SOURCE = Path(__file__).parents[1] / "data/cpuid.c"
THEIRS = "VKIT"
"""The first four letters of the CPU's name with the patch."""
PROGRAM = bytes.fromhex(
    "b802000080 0fa2 50"  # mov eax, 0x80000002; cpuid; push rax
    "b801000000 bf01000000 4889e6 ba04000000 0f05"  # write(1, rsp, 4)
    "b83c000000 31ff 0f05"  # exit(0)
)
"""Prints what CPUID gives as the first four letters of the CPU's name."""


def elf(code: bytes) -> bytes:
    """A program that is this code."""
    base, size = 0x400000, 120 + len(code)
    head = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + 120, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    return b"\x7fELF\2\1\1" + bytes(9) + head + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 4096) + code


@pytest.fixture(scope="module")
def tree(kvm_host: KvmHost) -> Path:
    """A system that can build modules for the host's kernel."""
    release = kvm_host.run(["uname", "-r"]).stdout.strip()
    packages = ("gcc", "make", f"linux-headers-{release}")

    def make(folder: Path) -> None:
        target = folder / "tree"
        debootstrap("trixie", packages, target, ["--variant=minbase"], folder / "log", silent, "kernel headers")

    name = f"headers-{release.partition('+')[0]}"
    return (cache.find(name) or cache.make(name, Bytes.parse("3G"), make)) / "tree"


@pytest.fixture(scope="module")
def patch(kvm_host: KvmHost, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch for the host's KVM."""
    path = tmp_path_factory.mktemp("patch") / "cpuid.toml"
    release = kvm_host.run(["uname", "-r"]).stdout.strip()
    kvm_host.client.hotfixes.make_for_kernel(
        SOURCE, module="kvm", functions=["kvm_emulate_cpuid"], id="cpuid", release=release, root=tree, path=path
    )
    return path


@pytest.fixture(scope="module")
def guest(kvm_host: KvmHost) -> Iterator[str]:
    """A guest on KVM with a program in it that says what it sees."""
    spec = {"name": NAME, "image": "micro", "memory": "160M", "accel": "kvm", "nics": [{"network": "none"}]}
    kvm_host.client.vms.create(spec, wait=True, deadline=600)
    vm = kvm_host.client.vms.get(NAME)
    octal = "".join(f"\\{b:03o}" for b in elf(PROGRAM))
    vm.guest_exec(["sh", "-c", f"printf '{octal}' > /tmp/cpu; chmod +x /tmp/cpu"], timeout=300)
    yield NAME
    vm.delete(force=True)


def seen(host: KvmHost) -> tuple[str, int]:
    """The letters that the guest sees, and its counter."""
    text = host.client.vms.get(NAME).guest_exec(["sh", "-c", "/tmp/cpu; counter"], timeout=300).stdout
    return text[:4], int(text[4:])


def hotfixes(host: KvmHost) -> Hotfixes:
    return host.client.hotfixes


def standing(host: KvmHost) -> str:
    (row,) = hotfixes(host).status()
    return row.state


def test_a_function_of_kvm_is_replaced_and_given_back(kvm_host: KvmHost, patch: Path, guest: str) -> None:
    before, counted = seen(kvm_host)
    assert before != THEIRS
    plan = hotfixes(kvm_host).plan(patch, allow_unsigned=True)
    assert [s.verb for s in plan.steps] == ["record", "pause", "compare", "load", "wait", "resume"]
    done = hotfixes(kvm_host).apply(patch, allow_unsigned=True, max_pause=60)
    assert done.state == "applied"
    assert [(p.guest, p.pause_ms is not None) for p in done.processes[1:]] == [(guest, True)]
    print(f"pause {done.pause_ms:.0f} ms, put in")
    letters, later = seen(kvm_host)
    assert letters == THEIRS
    assert later > counted
    assert standing(kvm_host) == "patched"
    assert hotfixes(kvm_host).apply(patch, allow_unsigned=True).state == "already applied"
    done = hotfixes(kvm_host).revert("cpuid", max_pause=60)
    assert done.state == "reverted"
    print(f"pause {done.pause_ms:.0f} ms, taken out")
    letters, last = seen(kvm_host)
    assert letters == before
    assert last > later
    assert standing(kvm_host) == "not patched"
    assert kvm_host.sh("lsmod | grep -c vmkit_ || true").stdout.strip() == "0"
    assert [e.what for e in hotfixes(kvm_host).history()] == ["applied", "reverted"]


@pytest.mark.parametrize(("step", "stays"), [("write", False), ("read-back", False), ("finish", True)])
def test_a_kill_leaves_all_or_nothing(
    kvm_host: KvmHost, patch: Path, guest: str, step: str, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, counted = seen(kvm_host)
    monkeypatch.setenv(KILL_VARIABLE, step)
    with pytest.raises(EffectError, match="was killed"):
        hotfixes(kvm_host).apply(patch, allow_unsigned=True, max_pause=60)
    monkeypatch.delenv(KILL_VARIABLE)
    letters, later = seen(kvm_host)
    assert (letters == THEIRS) is stays
    assert later > counted
    assert hotfixes(kvm_host).history()[-1].what == "repaired"
    assert hotfixes(kvm_host).revert("cpuid", max_pause=60).state == ("reverted" if stays else "not applied")
    assert seen(kvm_host)[0] != THEIRS
