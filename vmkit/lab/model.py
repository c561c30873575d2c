"""A lab and its hosts, as the rest of vmkit sees them; the same for every kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmkit.errors import NotFoundError
from vmkit.values import quoted


@dataclass(frozen=True, slots=True)
class Ssh:
    """How to reach a host by ssh. `key` is the private key file, `known_hosts` the file with the host's own key."""

    host: str
    port: int
    user: str
    key: Path
    known_hosts: Path


@dataclass(frozen=True, slots=True)
class LabHost:
    """One host of a lab.

    Attributes:
        name: 'pair/h1': what `exec` takes.
        lab, hostname, kind: 'pair', 'h1' and 'pair' (the kind of lab).
        state: 'up', 'broken' or 'down'; 'unknown' where the caller may not see it.
        problem: what is wrong if it is not up, else ''.
        uri: for libvirt, from this machine and from the lab's other hosts.
        ssh: for ssh, from this machine.
        address: of the host, among its lab's hosts and guests. Hosts of a pair have it towards this machine too.
        subnet: that hosts and guests share, 'A.B.C.0/24'.
        gateway: address of this machine in it; '' where this machine is not in it.
        dhcp: first and last address that guests get by DHCP.
        static: first and last address that is free for guests with fixed ones.
        pid: number of the process that is the host on this machine (its init, or its QEMU); None if it does not run.
        accel: what runs a host that is a virtual machine: 'kvm' or 'tcg'; '' for one that is none.
    """

    name: str
    lab: str
    hostname: str
    kind: str
    state: str
    problem: str
    uri: str
    ssh: Ssh
    address: str
    subnet: str
    gateway: str
    dhcp: tuple[str, str]
    static: tuple[str, str]
    pid: int | None
    accel: str = ""


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab and its hosts. `state` is 'up' only if all of it is."""

    name: str
    kind: str
    state: str
    problem: str
    folder: Path
    hosts: tuple[LabHost, ...]

    @classmethod
    def of(cls, name: str, kind: str, folder: Path, hosts: tuple[LabHost, ...]) -> Lab:
        """A lab whose state is that of its hosts."""
        states = {h.state for h in hosts}
        problem = "; ".join(dict.fromkeys(f"{h.hostname}: {h.problem}" for h in hosts if h.problem))
        return cls(name, kind, states.pop() if len(states) == 1 else "broken", problem, folder, hosts)

    def host(self, hostname: str) -> LabHost:
        """The host of this name ('h1').

        Raises:
            NotFoundError: there is none.
        """
        for host in self.hosts:
            if host.hostname == hostname:
                return host
        raise NotFoundError(f"the lab {self.name} has no host {quoted(hostname)}", hint="see: vmkit lab list")
