"""Limits on a host with systemd and cgroups of version 2, seen to hold while a guest works against them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab_kvm.conftest import KvmHost

NAME = "held"
SCOPE = f"S=$(ls -d /sys/fs/cgroup/machine.slice/machine-qemu*{NAME}.scope)"
CAP = 320 << 20
CPU = f"""{SCOPE}
sample() {{ awk '/^usage_usec|^nr_throttled/ {{printf "%s ", $2}}' $S/libvirt/cpu.stat; cut -d' ' -f1 /proc/uptime; }}
sample; sleep 8; sample
"""
SERVER = """cat >/tmp/serve.py <<'END'
import socket
s = socket.create_server(("0.0.0.0", 5555))
for _ in range(2):
    c = s.accept()[0]
    c.sendall(bytes(2 << 20))
    c.close()
END
setsid python3 /tmp/serve.py >/dev/null 2>&1 </dev/null & sleep 1
"""


@pytest.fixture(scope="module")
def host(kvm_host: KvmHost) -> Iterator[KvmHost]:
    """The shared host with one guest for all tests here, which has limits from its start."""
    flags = [
        *("--image", "micro", "--memory", "160M", "--accel", "kvm", "--nic", "lab"),
        *("--disk", "bus=virtio", "--disk", "64M,limits.read_iops_sec=400"),
        *("--limit", "cpu_shares=300", "--limit", "cpu_quota=0.9", "--limit", f"memory={CAP}"),
    ]
    kvm_host.vmkit("create", NAME, *flags, "--wait", "--deadline", "600s", timeout=900)
    yield kvm_host
    kvm_host.vmkit("delete", "--force", NAME)


def cpu_share(host: KvmHost) -> tuple[float, int]:
    """CPUs that the guest's whole process used over some seconds, and how often it was throttled."""
    words = [float(w) for w in host.sh(CPU).stdout.split()]
    usage, throttled, time = (words[i + 3] - words[i] for i in range(3))
    return usage / 1e6 / time, int(throttled)


def seconds(host: KvmHost, command: str) -> float:
    """How long a command in the guest takes, its log-in aside; measured on the nested host."""
    script = f"""a=$(cut -d' ' -f1 /proc/uptime)
    vmkit exec {NAME} -- sh -c '{command}' >/tmp/out 2>&1
    b=$(cut -d' ' -f1 /proc/uptime)
    echo $a $b"""
    first, last = host.sh(script).stdout.split()
    return float(last) - float(first)


def test_limits_of_the_spec_are_in_the_cgroup(host: KvmHost) -> None:
    said = host.sh(f"{SCOPE}; cat $S/cpu.weight $S/libvirt/cpu.max $S/libvirt/memory.max").stdout.split()
    assert said == ["300", "90000", "100000", str(CAP)]
    shown = host.vmkit("limit", NAME).stdout
    assert "320M" in shown
    assert "read-iops=400" in shown


def test_a_cpu_quota_holds_a_guest_that_burns(host: KvmHost) -> None:
    host.sh(f"vmkit limit {NAME} --none cpus; vmkit exec {NAME} -- sh -c 'while :; do :; done >/dev/null 2>&1 &'")
    free, none = cpu_share(host)
    host.vmkit("limit", NAME, "--cpus", "0.25")
    held, often = cpu_share(host)
    host.sh(f"vmkit limit {NAME} --none cpus; vmkit exec {NAME} -- killall sh")
    assert free > 0.6
    assert none == 0
    assert 0.1 < held < 0.4
    assert often > 5


def test_a_memory_cap_holds_all_that_is_in_the_cgroup(host: KvmHost) -> None:
    """A greedy process is put beside QEMU, as its victim: the kernel ends it at the cap, and the guest goes on."""
    done = host.sh(
        f"""{SCOPE}
        grep -E '^(max|oom_kill) ' $S/libvirt/memory.events
        python3 - $S/libvirt/cgroup.procs <<'END' || echo status $?
import os, sys
open("/proc/self/oom_score_adj", "w").write("1000")
open(sys.argv[1], "w").write(str(os.getpid()))
hog = bytearray({2 * CAP})
hog[::4096] = b"x" * len(hog[::4096])
END
        grep -E '^(max|oom_kill) ' $S/libvirt/memory.events
        cat $S/libvirt/memory.peak
        vmkit exec {NAME} -- counter"""
    ).stdout.split()
    before, after = (int(done[1]), int(done[3])), done[4:]
    assert after[:2] == ["status", "137"]
    assert int(after[3]) > before[0]
    assert int(after[5]) == before[1] + 1
    assert int(after[6]) <= CAP
    assert int(after[7]) > 0


def test_a_cap_that_the_guest_could_not_live_with_is_refused(host: KvmHost) -> None:
    done = host.vmkit("limit", NAME, "--memory-cap", "128M", check=False)
    assert done.status == 2
    assert "would kill" in done.stderr


def test_a_disk_is_held_to_operations_and_bytes(host: KvmHost) -> None:
    read = "dd if=/dev/vdb of=/dev/null bs=4096 count=60 iflag=direct"
    write = "dd if=/dev/zero of=/dev/vdb bs=65536 count=64 oflag=direct"
    host.vmkit("limit", NAME, "--none", "disk")
    free = seconds(host, f"{read}; {write}")
    host.vmkit("limit", NAME, "--disk", "vdb:read-iops=6,write-bps=512K")
    assert seconds(host, read) > max(8.0, free)  # 60 operations at 6 a second
    assert seconds(host, write) > 6.0  # 4 MiB at 512 KiB a second
    host.vmkit("limit", NAME, "--none", "disk")


def test_a_nic_is_held_to_its_rate(host: KvmHost) -> None:
    host.sh(SERVER)
    gateway = host.sh('ip -4 -o addr show br0 | awk \'{sub("/.*", "", $4); print $4}\'').stdout.strip()
    pull = f"nc {gateway} 5555 </dev/null | wc -c"
    free = seconds(host, pull)
    assert host.sh("cat /tmp/out").stdout.strip() == str(2 << 20)
    host.vmkit("limit", NAME, "--nic", "0:in=200K,out=1M")
    assert seconds(host, pull) > max(8.0, free)  # 2 MiB at 200 KiB a second
    assert host.sh("cat /tmp/out").stdout.strip() == str(2 << 20)
    tap = host.sh(
        f"""t=$(virsh domiflist {NAME} | awk '/bridge|network/ {{print $1}}')
        tc class show dev $t; tc filter show dev $t ingress; vmkit limit {NAME} --none all; tc qdisc show dev $t"""
    ).stdout
    assert "rate 1640Kbit" in tap  # 205 kB/s: the next whole kilobyte
    assert "rate 8392Kbit" in tap
    assert "htb" not in tap.splitlines()[-1]


def test_show_tells_how_the_guest_is_kept_apart(host: KvmHost) -> None:
    shown = dict(line.split(None, 1) for line in host.vmkit("show", NAME).stdout.splitlines() if "isolation" in line)
    assert shown["isolation.user"].startswith("libvirt-qemu")
    assert shown["isolation.seccomp"].startswith("on")
    assert "elevateprivileges=deny" in shown["isolation.sandbox"]
    assert shown["isolation.capabilities"] == "none"
    assert shown["isolation.no_new_privileges"] == "yes"
    assert "mnt" in shown["isolation.namespaces"]
    assert shown["isolation.cgroup"].startswith("/machine.slice/machine-qemu")
    assert "dac +" in shown["isolation.labels"]
