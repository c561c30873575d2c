"""The micro guest with Debian's generic kernel: emulated cards and disks, several cards, a failover pair."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.bare import Bare
from vmkit.client import Client
from vmkit.errors import VmkitError
from vmkit.image.manifest import Image

VIRTIO = "virtio-net-pci,netdev=n0,romfile="


@pytest.fixture(scope="module")
def generic(home: Path) -> Image:
    images = Client().images
    try:
        return images.get("micro-generic")
    except VmkitError:
        return images.build_micro(kernel="generic")


@pytest.fixture
def short() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vmkit-") as folder:
        yield Path(folder)


def with_card(image: Image, folder: Path, card: str, **more: object) -> Bare:
    """A guest whose card of virtio is another one."""
    bare = Bare(image, folder, **more)  # type: ignore[arg-type]
    bare.argv[bare.argv.index(VIRTIO)] = card
    return bare


def test_the_kernel_needs_no_unpacking(generic: Image) -> None:
    assert generic.kernel
    assert generic.kernel.path.read_bytes()[:4] == b"\x7fELF"
    assert "cloud" not in generic.source


def test_emulated_card_and_disk(generic: Image, short: Path) -> None:
    with with_card(generic, short, "e1000,netdev=n0,romfile=", disk=False) as bare:
        bare.expect(r"network eth0 10\.0\.2\.15/24 \(DHCP\)")
        bare.expect("micro:/# ")
        assert bare.shell("basename $(readlink -f /sys/class/net/eth0/device/driver)") == "e1000\n"
        assert " 0200: 8086:100e e1000\n" in bare.shell("lspci")
        assert bare.ask_udp(7, b"through e1000") == b"through e1000"


def test_sata_disk_is_reached(generic: Image, short: Path) -> None:
    assert generic.disk
    drive = ["-drive", f"file={generic.disk.path},if=none,id=d0,snapshot=on", "-device", "ide-hd,drive=d0,bus=ide.0"]
    with Bare(generic, short, cmdline="vmkit.ip=none", disk=False, extra=drive) as bare:
        bare.expect("micro:/# ")
        bare.shell(
            "for i in $(seq 100); do [ -b /dev/sda ] && break; sleep 0.1; done; load-modules /lib/modules/load-late"
        )
        assert bare.shell("mount -t ext4 /dev/sda /mnt && echo kept > /mnt/a && sync && cat /mnt/a") == "kept\n"
        assert bare.shell("basename $(readlink -f /sys/block/sda/device/../../../../driver)") == "ahci\n"


def test_each_card_gets_the_address_that_is_meant_for_it(generic: Image, short: Path) -> None:
    """The second one on the bus is the first by its MAC address."""
    second = ["-netdev", "user,id=n1,net=10.7.0.0/24", "-device", "e1000e,netdev=n1,romfile=,mac=52:54:00:00:00:07"]
    line = "vmkit.mac=52:54:00:00:00:07 vmkit.ip=10.7.0.9/24 vmkit.gw=10.7.0.2 vmkit.ip1=dhcp"
    with Bare(generic, short, cmdline=line, disk=False, extra=second) as bare:
        bare.expect("micro:/# ")
        mine = bare.shell("ip -o addr show | grep 10.7.0.9/24")
        card = mine.split()[1]
        assert bare.shell(f"cat /sys/class/net/{card}/address") == "52:54:00:00:00:07\n"
        other = "eth0" if card == "eth1" else "eth1"
        assert "10.0.2.15/24" in bare.shell(f"ip -o addr show {other}")
        routes = bare.shell("ip route").splitlines()
        assert f"default via 10.7.0.2 dev {card} " in routes[0] + " "
        assert f"default via 10.0.2.2 dev {other}  metric 1" in bare.shell("ip route")


def test_cards_without_a_number_come_in_the_order_of_the_bus(generic: Image, short: Path) -> None:
    more = []
    for n in (1, 2):
        more += ["-netdev", f"user,id=n{n},net=10.{n}.0.0/24", "-device", f"virtio-net-pci,netdev=n{n},romfile="]
    with Bare(generic, short, cmdline="vmkit.ip1=10.1.0.5/24 vmkit.ip2=none", disk=False, extra=more) as bare:
        bare.expect("micro:/# ")
        assert "10.0.2.15/24" in bare.shell("ip -o addr show eth0")
        assert "10.1.0.5/24" in bare.shell("ip -o addr show eth1")
        assert "inet " not in bare.shell("ip -o addr show eth2")


def test_the_halves_of_a_failover_pair_are_one_card(generic: Image, short: Path) -> None:
    with with_card(generic, short, f"{VIRTIO},failover=on", disk=False) as bare:
        bare.expect(r"network eth0 10\.0\.2\.15/24 \(DHCP\)")
        bare.expect("micro:/# ")
        # The card that stands for both, and its virtio half.
        assert bare.shell("ls -d /sys/class/net/eth*/master") == "/sys/class/net/eth1/master\n"
        assert "inet " not in bare.shell("ip -o addr show eth1")
        assert bare.ask_udp(7, b"standby") == b"standby"
