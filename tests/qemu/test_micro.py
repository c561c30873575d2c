"""The micro guest on a real QEMU: what the rest of vmkit counts on."""

from __future__ import annotations

import re
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.bare import Bare
from vmkit.image.api import Images
from vmkit.image.manifest import Image


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="vmkit-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def guest(micro: Image) -> Iterator[Bare]:
    """One guest with an address by DHCP, an edu device and a disk, for all the tests that leave it as it is."""
    with (
        tempfile.TemporaryDirectory(prefix="vmkit-") as folder,
        Bare(micro, Path(folder), cmdline="vmkit.name=probe1", extra=["-device", "edu"]) as bare,
    ):
        bare.expect("vmkit-micro: kernel up")
        bare.expect(r"vmkit-micro: network eth0 10\.0\.2\.15/24 \(DHCP\)")
        bare.expect("vmkit-micro: ready")
        bare.expect("probe1:/# ")
        yield bare


def test_the_manifest_says_what_the_guest_is(micro: Image) -> None:
    assert micro.agent
    assert micro.console_marker == "vmkit-micro: ready"
    assert "console=ttyS0" in micro.cmdline
    assert micro.source.startswith("Debian linux-image-")
    assert Images().get("micro") == micro


def test_shell_and_host_name(guest: Bare) -> None:
    assert guest.shell("hostname") == "probe1\n"
    assert guest.shell("dmesg | grep -ci 'unknown symbol'") == "0\n"


def test_the_shell_comes_back_after_exit(guest: Bare) -> None:
    guest.console.sendall(b"exit\n")
    guest.expect("BusyBox")
    guest.expect("probe1:/# ")
    assert guest.shell("echo still here") == "still here\n"


def test_counter_grows_by_a_hundred_a_second_at_most(guest: Bare) -> None:
    start = time.monotonic()
    first = guest.counter()
    time.sleep(1.0)
    second = int(guest.shell("counter"))
    third = guest.counter()
    passed = time.monotonic() - start
    assert first < second <= third
    assert third - first <= passed * 100 + 5


def test_counter_stands_still_with_the_guest_and_goes_on_from_there(guest: Bare) -> None:
    guest.qmp("stop")
    time.sleep(2.0)
    before = time.monotonic()
    guest.qmp("cont")
    first = guest.counter()
    time.sleep(0.5)
    second = guest.counter()
    # The pause is not made up for: the clock of the guest stood still as well.
    assert 0 < second - first <= (time.monotonic() - before) * 100 + 5


@pytest.mark.parametrize("data", [b"x", b"\0\xff" * 500, b""])
def test_echo(guest: Bare, data: bytes) -> None:
    assert guest.ask_udp(7, data) == data


def test_edu_device_is_identified(guest: Bare) -> None:
    assert guest.shell("edu-id") == "0x010000ed\n"


def test_edu_device_is_identified_after_its_configuration_was_lost(guest: Bare) -> None:
    """A migration leaves the device as after a reset, since it has no migration state."""
    lost = (
        "d=$(grep -l 0x11e8 /sys/bus/pci/devices/*/device); printf '\\0\\0\\0\\0' | dd of=${d%/*}/config bs=1 seek=16"
    )
    guest.shell(f"{lost} conv=notrunc 2>/dev/null; printf '\\0\\0' | dd of=${{d%/*}}/config bs=1 seek=4 2>/dev/null")
    assert guest.shell("edu-id") == "0x010000ed\n"


def test_agent_answers_and_runs_programs(guest: Bare) -> None:
    guest.agent("guest-ping")
    assert guest.agent_exec("hostname") == (0, "probe1\n")
    status, counter = guest.agent_exec("counter")
    assert status == 0
    assert int(counter) > 0
    assert guest.agent_exec("sh", "-c", "exit 3")[0] == 3
    names = [i["name"] for i in guest.agent("guest-network-get-interfaces")]
    assert "eth0" in names


def test_disk_can_be_mounted_and_written(guest: Bare) -> None:
    text = guest.shell(
        "mount -t ext4 /dev/vda /mnt && echo kept > /mnt/a && umount /mnt && blockdev --getsize64 /dev/vda"
    )
    assert text == f"{64 << 20}\n"
    assert guest.shell("mount -t ext4 /dev/vda /mnt && cat /mnt/a && umount /mnt") == "kept\n"


def _megabytes(status: str) -> tuple[float, float]:
    match = re.fullmatch(r"dirtying (\S+)M at (?:\S+)/s, measured ([0-9.]+)([MK])/s\n", status)
    assert match, status
    return float(match[1]), float(match[2]) / (1 if match[3] == "M" else 1024)


def test_dirtier_keeps_its_rate(guest: Bare) -> None:
    assert guest.shell("dirty status") == "idle\n"
    assert guest.shell("dirty 32M 10M").startswith("dirtying 32.0M at 10.0M/s")
    time.sleep(3.0)
    size, rate = _megabytes(guest.shell("dirty status"))
    assert size == 32
    assert 5 <= rate <= 10.5  # a machine under load may be too slow for it, but it is never faster
    assert guest.shell("dirty 48M max").startswith("dirtying 48.0M at max/s")
    time.sleep(2.0)
    assert _megabytes(guest.shell("dirty status"))[1] > 50
    assert guest.shell("dirty stop") == "idle\n"


@pytest.mark.parametrize("words", ["64X 1M", "1G max", "-5M", "16M fast", "0"])
def test_dirtier_refuses_what_makes_no_sense(guest: Bare, words: str) -> None:
    assert guest.shell(f"dirty {words} 2>&1 || true").startswith("error: ")


def test_power_button_ends_it(micro: Image, short: Path) -> None:
    with Bare(micro, short, cmdline="vmkit.ip=none", extra=["-no-reboot"]) as bare:
        bare.expect("vmkit-micro: network none")
        bare.expect("micro:/# ")
        bare.qmp("system_powerdown")
        assert bare.process.wait(timeout=60) == 0


def test_static_address_and_dirtier_from_the_command_line_and_power_off_by_the_agent(micro: Image, short: Path) -> None:
    line = "vmkit.name=s1 vmkit.ip=10.0.2.15/24 vmkit.gw=10.0.2.2 vmkit.dirty=16M@5M vmkit.tick=1000"
    with Bare(micro, short, cmdline=line, disk=False) as bare:
        bare.expect(r"vmkit-micro: network eth0 10\.0\.2\.15/24")
        bare.expect("s1:/# ")
        assert bare.ask_udp(7, b"ping") == b"ping"
        assert "default via 10.0.2.2 dev eth0" in bare.shell("ip route")
        assert bare.shell("dirty status").startswith("dirtying 16.0M at 5.0M/s")
        assert bare.shell("edu-id") == "none\n"
        ticks, uptime = bare.shell("counter; cat /proc/uptime").splitlines()
        assert 0 <= int(ticks) <= float(uptime.split()[0]) + 1  # one a second; otherwise they are a hundred
        with bare._connect("ga") as s:
            s.sendall(b'{"execute": "guest-shutdown"}\n')
            assert bare.process.wait(timeout=60) == 0


def test_probe_guest_says_so_and_ends(micro: Image, short: Path) -> None:
    from vmkit.host import probe

    with Bare(micro, short, cmdline=probe.CMDLINE, extra=["-m", str(probe.MEMORY_MIB)]) as bare:
        bare.expect(probe.MARKER.decode())
        assert bare.process.wait(timeout=60) == 0


def test_no_network_card_and_no_agent_port(micro: Image, short: Path) -> None:
    bare = Bare(micro, short, disk=False)
    for device in ("virtserialport,chardev=ga,name=org.qemu.guest_agent.0", "virtio-net-pci,netdev=n0,romfile="):
        at = bare.argv.index(device)
        del bare.argv[at - 1 : at + 1]
    with bare:
        bare.expect(r"vmkit-micro: network none \(no card\)")
        bare.expect("micro:/# ")
        assert "qemu-ga" not in bare.shell("cat /etc/inittab")


def test_guest_without_dhcp_server_gets_ready_all_the_same(micro: Image, short: Path) -> None:
    bare = Bare(micro, short, disk=False)
    at = next(i for i, a in enumerate(bare.argv) if a.startswith("user,"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        # A network on which nobody answers.
        bare.argv[at] = f"dgram,id=n0,remote.type=inet,remote.host=127.0.0.1,remote.port={sink.getsockname()[1]}"
        bare.argv[at] += ",local.type=inet,local.host=127.0.0.1,local.port=0"
        with bare:
            bare.expect("vmkit-micro: network eth0 no DHCP answer yet")
            bare.expect("vmkit-micro: ready")
