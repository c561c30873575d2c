"""A micro guest on the pair that the migration tests move about, wherever it is at the moment."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from vmkit.client import Client
from vmkit.hypervisor.domain import DomainState
from vmkit.hypervisor.host import Host
from vmkit.hypervisor.migration import Sighting, find, sight
from vmkit.lab.api import Lab
from vmkit.system.udp import UdpPeer

VMKIT = Path(sys.executable).with_name("vmkit")


class Mover:
    """One VM and the two hosts.

    Attributes:
        name, address: of the VM.
        uris: of the hosts.
    """

    def __init__(self, lab: Lab, name: str, address: str, **extra: object) -> None:
        self.name, self.address = name, address
        self.uris = [h.uri for h in lab.hosts[:2]]
        self.hosts = [Host.connect(u) for u in self.uris]
        prefix = lab.hosts[0].subnet.partition("/")[2]
        self.spec = {
            "name": name,
            "image": "micro",
            "memory": "192M",
            "accel": "tcg",
            "nics": [{"network": "lab", "address": f"{address}/{prefix}"}],
            **extra,
        }

    def create(self) -> None:
        with Client(self.uris[0]) as client:
            client.vms.create(self.spec, wait=True, deadline=240.0)

    def close(self) -> None:
        for host in self.hosts:
            for domain in host.domains():
                if domain.name == self.name:
                    if domain.state().active:
                        domain.destroy()
                    if domain.exists():
                        domain.undefine()
            host.close()

    # -- where it is

    def sightings(self) -> list[Sighting | None]:
        domains = [find(h, name=self.name) for h in self.hosts]
        return [None if d is None else sight(d) for d in domains]

    def states(self) -> list[str]:
        """As in ['-', 'running']."""
        return ["-" if s is None else s.state.value for s in self.sightings()]

    @property
    def at(self) -> int:
        """Which host it runs on. Fails unless it runs on one and is unknown to the other."""
        assert sorted(self.states()) == ["-", "running"], self.states()
        return self.states().index("running")

    @property
    def source(self) -> str:
        return self.uris[self.at]

    @property
    def target(self) -> str:
        return self.uris[1 - self.at]

    def running_at(self) -> list[bool]:
        return [s is not None and s.state is DomainState.RUNNING for s in self.sightings()]

    # -- the guest

    def counter(self, deadline: float = 30.0) -> int:
        """The counter that the guest keeps in its memory and that grows by 100 a second."""
        with UdpPeer(self.address, 7007) as peer:
            answer = peer.ask(b"?", timeout=deadline)
        assert answer is not None, f"{self.name} does not answer; it is {self.states()}"
        return int(answer)

    def guest(self, *argv: str) -> str:
        with Client(self.source) as client:
            return client.vms.get(self.name).guest_exec(list(argv), timeout=240.0).stdout

    # -- vmkit, as another process

    def start_migrate(self, *options: str, target: str | None = None) -> subprocess.Popen[str]:
        argv = [str(VMKIT), "-c", self.source, "migrate", self.name, "--to", target or self.target, *options]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)

    def wait_for_transfer(self, process: subprocess.Popen[str], at_least: int = 2**20) -> None:
        """Wait until memory goes across."""
        host = next(h for h, s in zip(self.hosts, self.sightings(), strict=True) if s is not None)
        domain = host.domain(self.name)
        for _ in range(600):
            job = domain.job()
            if job is not None and job.processed >= at_least:
                return
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        raise AssertionError("no transfer was seen")


def vmkit(*argv: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(VMKIT), *argv], capture_output=True, text=True, timeout=timeout, check=False)


def jobs() -> list[dict[str, object]]:
    """What `vmkit jobs` lists. As every command it first takes up what was cut off."""
    done = vmkit("jobs", "-o", "json")
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))
