"""Choices that need a host with KVM, seen from outside and inside a guest that has it all; and one that is emulated."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab_kvm.conftest import HUGE_PAGES, KvmHost

WAIT = "400s"
MEMORY_PAGES = 64  # 128 MiB in pages of 2 MiB
GUEST = """
echo clock=$(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)
echo model=$(grep -m1 'model name' /proc/cpuinfo)
echo cpus=$(grep -c ^processor /proc/cpuinfo)
echo hypervisor=$(cat /sys/hypervisor/type 2>/dev/null)
echo queues=$(ls /sys/block/vda/mq | wc -l)
echo vectors=$(grep -c virtio /proc/interrupts)
dmesg | grep -iE 'kvm|pv ipi|tlb|spinlock|steal' || true
"""


@pytest.fixture
def host(kvm_host: KvmHost) -> Iterator[KvmHost]:
    """The shared host; the guests of a test are deleted after it."""
    yield kvm_host
    kvm_host.sh("for v in chosen plain; do vmkit delete --force $v >/dev/null 2>&1 || true; done")


def free_pages(host: KvmHost) -> int:
    return int(host.sh("cat /sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").stdout)


def test_huge_pages_vhost_pinning_and_helpers_in_one_guest(host: KvmHost) -> None:
    assert free_pages(host) == HUGE_PAGES
    device = host.sh("truncate -s 16M /root/block && losetup --show -f /root/block").stdout.strip()
    flags = [
        *("--image", "micro", "--family", "compute", "--memory", "128M", "--accel", "kvm", "--nic", "lab,vhost=on"),
        *("--disk", "bus=virtio", "--disk", f"io=passthrough,source={device}"),
    ]
    plan = json.loads(host.vmkit("explain", "chosen", *flags, "-o", "json", timeout=900).stdout)
    values = {c["subject"]: c["value"] for c in plan["choices"]}
    assert values["memory.paging"] == "NPT"
    assert values["hugepages"] == "2M"
    assert values["cpu"] == "host-passthrough"
    assert {c["subject"] for c in plan["choices"] if c["rejected"]} >= {"accel", "cpu", "hugepages", "helpers.locks"}

    host.vmkit("create", "chosen", *flags, "--wait", "--deadline", WAIT, timeout=900)
    assert HUGE_PAGES - free_pages(host) == MEMORY_PAGES

    seen = host.sh(
        r"""pid=$(cat /run/libvirt/qemu/chosen.pid)
        echo "fds=$(ls -l /proc/$pid/fd | grep -c vhost-net || true)"
        for t in /proc/$pid/task/*; do
          case $(cat $t/comm) in "CPU 0/KVM") echo "vcpu=$(awk '/Cpus_allowed_list/ {print $2}' $t/status)" ;; esac
          case $(cat $t/comm) in vhost-*) echo "worker=$(cat $t/comm)" ;; esac
          case $(cat $t/comm) in IO\ iothread1) echo "io=$(awk '/Cpus_allowed_list/ {print $2}' $t/status)" ;; esac
        done
        echo "main=$(awk '/Cpus_allowed_list/ {print $2}' /proc/$pid/task/$pid/status)"
        tr '\0' '\n' </proc/$pid/cmdline
        """
    ).stdout
    facts = dict(line.split("=", 1) for line in seen.splitlines() if "=" in line and "," not in line)
    assert int(facts["fds"]) >= 1  # QEMU has /dev/vhost-net open
    assert facts["worker"].startswith("vhost-")  # a thread of the process that runs in the kernel (since Linux 6.4)
    assert (facts["vcpu"], facts["main"], facts["io"]) == ("1", "0", "0")
    assert '"vhost":true' in seen
    assert "/dev/hugepages" in seen
    assert "kvm-hint-dedicated=on" in seen

    inside = host.vmkit("exec", "chosen", "--", "sh", "-c", GUEST, timeout=300).stdout
    assert "clock=kvm-clock" in inside
    assert "QEMU Virtual CPU" not in inside  # the host's own model
    assert "PV spinlocks disabled with KVM_HINTS_REALTIME" in inside  # what hint-dedicated does in the guest

    write = "printf 'through the block device' | dd of=/dev/vdb conv=fsync 2>/dev/null"
    host.vmkit("exec", "chosen", "--", "sh", "-c", write)
    assert host.sh("head -c 24 /root/block").stdout == "through the block device"

    now = json.loads(host.vmkit("explain", "chosen", "-o", "json").stdout)
    values = {c["subject"]: c["value"] for c in now["choices"]}
    assert values["pinning"] == "0->1 rest->0"
    assert (values["hugepages"], values["nics[0].vhost"], values["helpers.clock"]) == ("2M", "on", "kvmclock")

    host.vmkit("delete", "--force", "chosen")
    host.sh(f"losetup -d {device} && rm /root/block")
    assert free_pages(host) == HUGE_PAGES


def test_pages_that_are_not_there_are_refused_with_the_command(host: KvmHost) -> None:
    done = host.vmkit(
        "create", "plain", "--image", "micro", "--hugepages", "2M", "--memory", "512M", "--accel", "tcg", check=False
    )
    assert done.status == 3
    assert f"256 pages of 2M are needed, {HUGE_PAGES} are free" in done.stderr
    assert "echo 256 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages" in done.stderr
    assert "plain" not in host.vmkit("list", "-o", "name").stdout.split()


def test_a_block_device_that_is_mounted_is_refused(host: KvmHost) -> None:
    disk = "io=passthrough,source=/dev/vda"
    done = host.vmkit("create", "plain", "--disk", disk, "--accel", "tcg", "--nic", "none", check=False)
    assert done.status == 3
    assert "disks[0].source: /dev/vda on qemu:///system is mounted there" in done.stderr


def test_emulated_cpu_on_a_host_that_has_kvm(host: KvmHost) -> None:
    host.vmkit(
        "create", "plain", "--image", "micro", "--cpu", "emulated", "--memory", "128M", "--nic", "none", timeout=900
    )
    explained = json.loads(host.vmkit("explain", "plain", "-o", "json").stdout)
    values = {c["subject"]: c["value"] for c in explained["choices"]}
    assert (values["accel"], values["memory.paging"], values["helpers"]) == ("tcg", "software", "none")
    # TCG in an emulated host takes minutes to boot, and boots in every other tier: here it is enough that it runs.
    assert "-accel\ntcg" in host.sh("tr '\\0' '\\n' </proc/$(cat /run/libvirt/qemu/plain.pid)/cmdline").stdout
