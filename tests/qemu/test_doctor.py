"""`vmkit doctor` on this machine and on a lab's hosts, beside what other programs say of the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from vmkit import Client
from vmkit.cli.main import cli
from vmkit.errors import SpecError, UnreachableError, UnsupportedError
from vmkit.host.doctor import Report, diagnose
from vmkit.host.facts.libvirt import Answers
from vmkit.host.facts.probe import ProbeFacts
from vmkit.host.finding import Level
from vmkit.lab.api import Lab
from vmkit.values import to_plain

SCHEMA = Path(__file__).parents[2] / "templates" / "doctor.schema.json"


def said(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    return done.stdout


@pytest.fixture(scope="module")
def report() -> Report:
    with Client() as client:
        return client.doctor(probe=False)


def test_facts_agree_with_other_programs(report: Report) -> None:
    cpu = dict(re.findall(r"^([^:\n]+):\s+(.*)$", said("lscpu"), re.MULTILINE))
    facts = report.facts
    assert facts.cpu.threads == int(said("nproc", "--all"))
    assert facts.cpu.sockets == int(cpu["Socket(s)"])
    assert facts.cpu.cores == int(cpu["Core(s) per socket"]) * int(cpu["Socket(s)"])
    assert facts.cpu.model == cpu["Model name"]
    assert len(facts.memory.nodes) == int(cpu["NUMA node(s)"])
    assert sum(len(n.cpus) for n in facts.memory.nodes) == facts.cpu.threads
    assert facts.system.kernel == said("uname", "-r").strip()
    assert facts.memory.page_size == int(said("getconf", "PAGESIZE"))
    assert facts.memory.total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    assert facts.kvm.device.present == Path("/dev/kvm").exists()
    virsh = ["virsh", "-c", "qemu:///system", "version", "--daemon"]
    asked = subprocess.run(virsh, capture_output=True, text=True, timeout=60, check=False)
    if asked.returncode == 0:
        assert facts.libvirt.libvirt in asked.stdout
    else:  # no libvirtd runs on this machine, and doctor must not know its version either
        assert facts.libvirt.libvirt is None


def test_it_agrees_with_virt_host_validate(report: Report) -> None:
    lines = said("virt-host-validate", "qemu").splitlines()

    def state(words: str) -> str:
        line = next((s for s in lines if words in s), "")
        return line.rpartition(" : ")[2].split(" ")[0].strip()

    assert (state("hardware virtualization") == "PASS") == (report.facts.cpu.extension is not None)
    assert (state("/dev/net/tun") == "PASS") == bool(report.facts.kvm.tun.present)
    assert (state("/dev/vhost-net") == "PASS") == bool(report.facts.kvm.vhost_net.present)
    for controller in ("cpu", "memory", "cpuset"):
        assert (state(f"cgroup '{controller}' controller") == "PASS") == (controller in report.facts.system.controllers)


def test_a_user_without_rights_gets_a_report() -> None:
    # The script alone: the interpreter of a virtual environment may be out of another user's reach.
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/bin/sh"]
    script = (SCHEMA.parent / "doctor.sh").read_text()
    done = subprocess.run(nobody, input=script, capture_output=True, text=True, check=True)
    report = diagnose("x", done.stdout, Answers("qemu:///system", error="not asked"), ProbeFacts(None, "not asked"))
    facts = report.facts
    assert facts.system.complete
    assert facts.system.root is False
    assert facts.cpu.threads == os.cpu_count()
    others = Path("/dev/kvm").exists() and Path("/dev/kvm").stat().st_mode & 0o006 == 0o006
    assert facts.kvm.device.usable in ((others,) if facts.kvm.device.present else (None,))
    assert ("kvm-access" in {f.id for f in report.findings}) == (facts.kvm.device.usable is False)


def test_a_host_of_a_lab_by_its_uri(pair: Lab) -> None:
    with Client(pair.hosts[0].uri) as client:
        report = client.doctor(probe=False)
    jsonschema.validate(to_plain(report), json.loads(SCHEMA.read_text()))
    assert report.facts.system.hostname == pair.hosts[0].name.rpartition("/")[2]
    assert report.facts.libvirt.error is None
    assert report.facts.libvirt.driver == "QEMU"
    assert report.host == pair.hosts[0].address


def test_a_host_of_a_lab_by_its_address_needs_a_way_in(pair: Lab, home: Path) -> None:
    with Client() as client, pytest.raises(UnreachableError) as caught:
        client.doctor(ssh=f"root@{pair.hosts[0].address}", identity=home / "no-such-key", probe=False)
    assert "BatchMode=yes" in str(caught.value.hint)


def test_the_command_ends_with_3_if_the_host_cannot_be_looked_at() -> None:
    with Client("qemu+ssh://root@127.0.0.1:1/system") as client, pytest.raises(UnreachableError):
        client.doctor(probe=False)
    with Client("qemu+tls://example.org/system") as client, pytest.raises(UnsupportedError, match="libvirt alone"):
        client.doctor(probe=False)
    with Client() as client, pytest.raises(SpecError, match="--ssh"):
        client.doctor(ssh="-oProxyCommand=x", probe=False)


def test_libvirt_that_does_not_answer_is_a_finding() -> None:
    with Client("qemu:///system?socket=/nonexistent") as client:
        report = client.doctor(probe=False)
    down = next(f for f in report.findings if f.id == "libvirt-down")
    assert down.level is Level.PROBLEM
    assert report.facts.probe.works is None


def test_the_command(report: Report) -> None:
    done = CliRunner().invoke(cli, ["doctor", "--no-probe", "-o", "json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    assert found["facts"]["cpu"] == to_plain(report.facts.cpu)
