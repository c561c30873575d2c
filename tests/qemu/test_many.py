"""Thirty VMs at once from one file: all ready, none lost, and the host as before when they are gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vmkit.client import Client
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab, Labs
from vmkit.system.journal import records

COUNT = 30


def look(client: Client, lab: Lab) -> dict[str, list[str]]:
    """What could be left on a host: domains, files of the pool, interfaces, processes, entries of the journal."""
    pool = client.host.pool("vmkit")
    pool.refresh()
    labs = Labs()
    links = labs.run(f"{lab.name}/h2", ["ls", "/sys/class/net"]).stdout.split()
    running = labs.run(f"{lab.name}/h2", ["ls", "/run/libvirt/qemu"]).stdout.split()
    return {
        "domains": [r.name for r in client.vms.list()],
        "volumes": pool.names(),
        "links": sorted(links),
        "running": sorted(n for n in running if n.endswith((".xml", ".pid"))),
        "journal": [r.id for r in records()],
    }


@pytest.mark.timeout(1500)
def test_thirty_vms_from_one_file(client_h2: Client, micro: Image, pair: Lab, tmp_path: Path) -> None:
    assert micro.name == "micro"
    spec = {"name": "placed", "image": "micro", "memory": "96M", "nics": [{"network": "lab"}]}
    client_h2.vms.create(spec, start=False)  # puts the image there, which stays
    client_h2.vms.get("placed").delete()
    before = look(client_h2, pair)
    file = tmp_path / "thirty.yaml"
    # A counter that grows a hundred times a second takes 7 % of a CPU in an emulated guest, and here are thirty.
    one = "- {{name: vm{0}, image: micro, memory: 96M, cmdline: vmkit.tick=1000, nics: [{{network: lab}}]}}\n"
    file.write_text("vms:\n" + "".join(one.format(i) for i in range(COUNT)))
    vmkit = [sys.executable, "-m", "vmkit", "-c", pair.host("h2").uri]
    try:
        apply = [*vmkit, "apply", "-f", str(file), "--wait", "--deadline", "300s"]
        done = subprocess.run(apply, capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr
        names = {f"vm{i}" for i in range(COUNT)}
        rows = {r.name: r for r in client_h2.vms.list()}
        assert set(rows) == names
        assert {r.state for r in rows.values()} == {"running"}
        vms = [client_h2.vms.get(n) for n in sorted(names)]
        assert [vm.guest_exec(["hostname"]).stdout.strip() for vm in vms] == sorted(names)
        assert len({a for vm in vms for a in vm.details().addresses}) == COUNT
    finally:
        gone = subprocess.run(
            [*vmkit, "delete", "--all", "--force"], capture_output=True, text=True, timeout=300, check=False
        )
    assert gone.returncode == 0, gone.stderr
    assert len(gone.stdout.splitlines()) == COUNT
    assert look(client_h2, pair) == before
