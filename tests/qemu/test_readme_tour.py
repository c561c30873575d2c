"""The README's everyday tour, run as it stands there, on a host of the lab."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from vmkit.client import Client
from vmkit.image.manifest import Image
from vmkit.lab.api import Lab

ROOT = Path(__file__).parents[2]
WAIT = 900
"""Seconds for what takes about one minute on a quiet machine."""
BEFORE_THE_END = """
{ vmkit list -o json; echo ---; vmkit network list -o name; } >"$SEEN/state"
cp vms.yaml "$SEEN"
"""
"""What the test looks at before the tour's last commands take it away."""


def blocks(section: str) -> list[str]:
    """The shell blocks of a section of the README."""
    text = (ROOT / "README.md").read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def traced(block: str) -> str:
    """The block with each command told on stdout before it runs; here-documents stay as they are."""
    told: list[str] = []
    end = None
    for line in block.splitlines():
        if end is None and (match := re.search(r"<<'(\w+)'", line)):
            end = match[1]
        elif end is None and line.strip():
            told.append(f"printf '\\n$ %s\\n' {json.dumps(line.split('  #')[0]).replace('$', chr(92) + '$')}")
        elif line == end:
            end = None
        told.append(line)
    return "\n".join(told)


def volumes(client: Client) -> set[str]:
    pool = client.host.pool("vmkit")
    pool.refresh()
    return {name for name in pool.names() if not re.match(r"[0-9a-f]{16}\.", name)}  # images stay for the next VM


def test_the_everyday_tour(pair: Lab, client_h1: Client, micro: Image, tmp_path: Path) -> None:
    assert micro.name == "micro"
    seen = tmp_path / "seen"
    work = tmp_path / "work"
    seen.mkdir()
    work.mkdir()
    vms = {vm.name for vm in client_h1.vms.list()}
    networks, files = set(client_h1.host.network_names()), volumes(client_h1)
    *shown, last = blocks("Everyday tour")
    inventory, _, away = last.partition("\n")
    parts = [*shown, inventory, BEFORE_THE_END, away]
    script = "set -euo pipefail\n" + "\n".join(p if p == BEFORE_THE_END else traced(p) for p in parts)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=work,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WAIT,
        check=False,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VMKIT_CONNECT": pair.host("h1").uri,
            "SEEN": str(seen),
        },
    )
    try:
        assert done.returncode == 0, done.stdout[-4000:]
        check_what_was_said(done.stdout, seen)
        assert list(work.iterdir()) == []
        assert {vm.name for vm in client_h1.vms.list()} == vms
        assert set(client_h1.host.network_names()) == networks
        assert volumes(client_h1) == files
    finally:
        for row in client_h1.vms.list():
            if row.name not in vms:
                client_h1.vms.get(row.name).delete(force=True)
        if "shop" in client_h1.host.network_names():
            client_h1.networks.delete("shop", force=True)


def check_what_was_said(said: str, seen: Path) -> None:
    def after(command: str, nth: int = 0) -> str:
        return said.split(f"\n$ {command}\n")[nth + 1].partition("\n$ ")[0]

    assert "is made" in after("vmkit diff -f shop.yaml")
    assert "web1: unchanged" in after("vmkit apply -f shop.yaml")
    assert "role=front-end" in after("vmkit list -o wide")
    assert after("vmkit exec web1 -- hostname") == "web1\n"
    assert after("vmkit exec web1 -- cat /tmp/note.txt") == "hello\n"  # it is back after the revert
    counters = [int(re.findall(r"^\d+$", after("vmkit exec web1 -- counter", i), re.MULTILINE)[0]) for i in range(2)]
    copies = [int(re.findall(r"^\d+$", after("vmkit exec web2 -- counter", i), re.MULTILINE)[0]) for i in range(2)]
    assert counters[0] < counters[1] < copies[0] < copies[1]  # one memory, which nothing set back to zero
    assert re.search(r"254\s+0\s+524288 vda$", after("vmkit exec web1 -- cat /proc/partitions"), re.MULTILINE)
    assert "byte for byte" in after('vmkit backup restore "$PWD/backups" web1 --as web3')
    state, _, names = (seen / "state").read_text().partition("---\n")
    assert {vm["name"] for vm in json.loads(state)} >= {"web1", "web2", "old-web1"}
    assert "shop" in names.split()
    found = yaml.safe_load((seen / "vms.yaml").read_text())["vmkit"]
    assert set(found["children"]["label_role_front_end"]["hosts"]) >= {"web1", "web2"}
    assert found["hosts"]["web1"]["ansible_host"] != found["hosts"]["web2"]["ansible_host"]
