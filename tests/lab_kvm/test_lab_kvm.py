"""The nested host as its users see it: what it has, how it is entered, and that a guest runs on its KVM."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.lab_kvm.conftest import HUGE_PAGES, OPTIONS, PF, KvmHost
from vmkit.errors import ConflictError
from vmkit.lab.api import Labs
from vmkit.lab.kvm.options import KvmOptions
from vmkit.system.process import run


def vmkit(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "vmkit", *words]
    return subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=300, check=False)


def test_the_host_is_what_was_asked_for(kvm_host: KvmHost) -> None:
    facts = kvm_host.sh(f"""
        echo name $(hostname)
        echo clock $(date +%s)
        echo npt $(cat /sys/module/kvm_amd/parameters/npt)
        echo paging $(/usr/lib/vmkit-lab/paging)
        echo pages $(cat /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)
        cd /sys/bus/pci/devices/{PF}
        echo vfs $(cat sriov_totalvfs) $(basename $(readlink driver))
        echo group $(ls /sys/bus/pci/devices/{PF}/iommu_group/devices)
        echo shared $(ls /sys/bus/pci/devices/0000:00:1f.2/iommu_group/devices)
        echo br0 $(ip -4 -br address show br0)
        echo links $(ip -br link show up | cut -d' ' -f1 | sort)
        echo failed $(systemctl list-units --failed --plain --no-legend | cut -d' ' -f1)
        echo seed $(test ! -e /etc/vmkit-lab/seed && echo gone)
        test -w /dev/kvm
    """).stdout
    found = dict(line.partition(" ")[::2] for line in facts.splitlines())
    assert found["name"] == "h1"
    assert abs(int(found["clock"]) - time.time()) < 60
    assert found["npt"] in ("Y", "1")
    assert found["paging"] == "nested"
    assert int(found["pages"]) == HUGE_PAGES
    assert found["vfs"] == "7 igb"
    assert found["group"] == PF
    assert len(found["shared"].split()) > 1
    assert f"{kvm_host.lab.address}/24" in found["br0"]
    assert {"mgmt", "pf0", "wire0"} <= set(found["links"].split())
    assert found["failed"] == ""
    assert found["seed"] == "gone"


def test_its_libvirt_has_an_identity_a_pool_and_networks(kvm_host: KvmHost) -> None:
    host = kvm_host.client.host
    assert host.hostname() == "h1"
    assert host.pool("vmkit").folder == Path("/var/lib/vmkit/pool")
    assert host.network_names() == {"default": True, "lab": True}
    uuid = ET.fromstring(host.capabilities()).findtext("host/uuid")
    assert kvm_host.run(["cat", "/etc/libvirt/libvirtd.conf"]).stdout.strip() == f'host_uuid = "{uuid}"'
    assert run(["virsh", "-c", kvm_host.lab.uri, "hostname"]).stdout.strip() == "h1"


def test_a_guest_runs_on_its_kvm_by_the_vmkit_that_is_in_it(kvm_host: KvmHost) -> None:
    assert "vmkit" in kvm_host.run(["vmkit", "--version"]).stdout
    try:
        kvm_host.vmkit(
            "create",
            "first",
            "--image",
            "micro",
            "--accel",
            "kvm",
            "--nic",
            "lab",
            "--wait",
            "--deadline",
            "5m",
            timeout=600,
        )
        shown = json.loads(kvm_host.vmkit("list", "-o", "json").stdout)
        assert [row["name"] for row in shown] == ["first"]
        assert "type='kvm'" in kvm_host.run(["virsh", "dumpxml", "first"]).stdout
    finally:
        kvm_host.vmkit("delete", "first", "--force", check=False)


def test_the_list_is_complete_as_json_and_the_files_are_for_their_owner_alone(kvm_host: KvmHost) -> None:
    rows = json.loads(vmkit("lab", "list", "-o", "json").stdout)
    (row,) = [r for r in rows if r["lab"] == kvm_host.lab.lab]
    assert (row["kind"], row["state"], row["accel"]) == ("kvm", "up", kvm_host.lab.accel)
    assert set(row["ssh"]) == {"host", "port", "user", "key", "known_hosts"}
    assert row["ssh"]["host"] == "127.0.0.1"
    assert Path(row["ssh"]["key"]).stat().st_mode & 0o777 == 0o600
    assert Path(row["ssh"]["key"]).parent.stat().st_mode & 0o777 == 0o700


def test_what_is_kept_is_shown_and_what_is_in_use_stays(kvm_host: KvmHost) -> None:
    cached = Labs().cached()
    kept = {e.kind: e for e in cached if e.used_by}
    # An image that the whole machine has (root's `vmkit lab` keeps it) is not among this user's.
    assert set(kept) == {"booted"} | ({"image"} & {e.kind for e in cached})
    assert kvm_host.lab.lab in kept["booted"].used_by
    gone = {e.name for e in Labs().prune()}
    assert gone.isdisjoint(e.name for e in kept.values())


def test_a_second_up_returns_the_same_host_at_once_or_says_what_differs(kvm_host: KvmHost) -> None:
    labs, start = Labs(), time.monotonic()
    assert labs.up("kvm", name=kvm_host.lab.lab, options=OPTIONS).hosts == (kvm_host.lab,)
    assert labs.up("kvm", name=kvm_host.lab.lab).hosts == (kvm_host.lab,)
    assert time.monotonic() - start < 5
    with pytest.raises(ConflictError, match="other hosts than are asked for"):
        labs.up("kvm", name=kvm_host.lab.lab, options=KvmOptions())
    with pytest.raises(ConflictError, match="of the kind kvm"):
        labs.up("pair", name=kvm_host.lab.lab)


def test_exec_passes_words_streams_and_status_on(kvm_host: KvmHost) -> None:
    words = ["a b", "$HOME", "'", '"', "*", "", "--", "-c", "ä\n"]
    script = 'cat; printf "[%s]" "$@" >&2; exit 7'
    done = vmkit("lab", "exec", kvm_host.lab.name, "--", "sh", "-c", script, "x", *words, stdin="in")
    assert done.stdout == "in"
    assert done.stderr == "".join(f"[{w}]" for w in words)
    assert done.returncode == 7
    assert vmkit("lab", "exec", kvm_host.lab.name, "--", "no-such-program").returncode == 127
