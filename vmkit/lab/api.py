"""Labs: throw-away hosts, brought up, listed, entered and torn down."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vmkit.errors import ConflictError, NotFoundError, RefusedError, SpecError
from vmkit.lab import config
from vmkit.lab.blueprint import HostPlan, check_hosts
from vmkit.lab.layout import Layout, check_folder
from vmkit.lab.reality import HostReality, guests, inside, labs_with_processes, processes, running_hosts
from vmkit.lab.state import LabState, Phase, load, save
from vmkit.lab.teardown import erase, exclusive, settled, tear_down
from vmkit.progress import Note, Reporter, silent
from vmkit.system.files import ensure_dir, home
from vmkit.system.journal import journalled
from vmkit.system.process import Completed, replace, run
from vmkit.values import check_name, quoted

KINDS = ("pair",)


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
        state: 'up', 'broken' or 'down'; 'unknown' where the caller is not root.
        problem: what is wrong if it is not up, else ''.
        uri: for libvirt, from this machine and from the lab's other hosts.
        ssh: for ssh, from both as well.
        address: of the host.
        subnet: that hosts and guests share, 'A.B.C.0/24'.
        gateway: address of this machine in it.
        dhcp: first and last address that guests get by DHCP.
        static: first and last address that is free for guests with fixed ones.
        pid: number of the host's init on this machine; None if it does not run.
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


Hosts = list[LabHost]


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab and its hosts. `state` is 'up' only if all of it is."""

    name: str
    kind: str
    state: str
    problem: str
    folder: Path
    hosts: tuple[LabHost, ...]

    def host(self, hostname: str) -> LabHost:
        """The host of this name ('h1').

        Raises:
            NotFoundError: there is none.
        """
        for host in self.hosts:
            if host.hostname == hostname:
                return host
        raise NotFoundError(f"the lab {self.name} has no host {quoted(hostname)}", hint="see: vmkit lab list")


class Labs:
    """The labs of this machine."""

    # -- up and down

    def up(self, kind: str = "pair", name: str | None = None, hosts: int = 2, reporter: Reporter = silent) -> Lab:
        """Bring a lab up; one that is up already is returned as it is.

        What an earlier attempt left behind when it was killed, or what a reboot left, is removed first.

        Args:
            kind: 'pair': hosts in namespaces of this machine.
            name: by default the kind.
            hosts: how many, 2 to 8. Not looked at if the lab is up.
            reporter: told of each step.

        Raises:
            RefusedError: not root.
            SpecError: no such kind, no such name, or a number of hosts that cannot be.
            ConflictError: another process works on the lab, or it is broken and guests run in it.
            EffectError, DeadlineError: it could not be brought up; nothing is left of it.
        """
        if kind not in KINDS:
            raise SpecError(f"{quoted(kind)} is not a kind of lab", path="kind", hint=f"there is: {', '.join(KINDS)}")
        layout = _layout(name or kind)
        check_hosts(hosts)
        _need_root(f"vmkit lab up {kind}")
        check_folder(layout.folder)
        with exclusive(layout, wait=90.0):
            if ready := self._ready(layout, reporter):
                return ready
            state = LabState(layout.name, kind, secrets.token_hex(8), _now(), Phase.BUILDING)
            with journalled("lab", layout.name, "up", folder=str(layout.folder), token=state.token):
                self._build(layout, state, hosts, reporter)
            return _describe(layout, load(layout) or state)

    def down(self, name: str, reporter: Reporter = silent) -> None:
        """Tear a lab down: its guests, processes, network and files. Works on a lab in any condition.

        Raises:
            RefusedError: not root.
            NotFoundError: there is nothing of that name.
            ConflictError: another process works on it.
            EffectError: something could not be removed; it can be tried again.
        """
        layout = _layout(name)
        if layout.folder in settled:
            settled.discard(layout.folder)
            reporter(Note(f"nothing is left of the lab {name}"))
            return
        if not any(p.exists() for p in (layout.folder, layout.lock)) and not processes(layout):
            raise _unknown(name, self._names())
        _need_root(f"vmkit lab down {name}")
        with exclusive(layout, wait=5.0):
            tear_down(layout, reporter)

    def down_all(self, reporter: Reporter = silent) -> Sequence[str]:
        """Tear down every lab, also one whose files are gone; returns their names. The errors are those of `down`."""
        names = sorted({*self._names(), *labs_with_processes(home() / "lab")})
        for name in names:
            self.down(name, reporter)
        return names

    # -- what there is

    def list(self) -> Hosts:
        """Every host of every lab, by name."""
        return [host for name in self._names() for host in self.get(name).hosts]

    def get(self, name: str) -> Lab:
        """One lab, as it is now.

        Raises:
            NotFoundError: there is none of that name.
        """
        layout = _layout(name)
        if not layout.folder.is_dir():
            raise _unknown(name, self._names())
        state = load(layout)
        if state is None:
            return Lab(name, "pair", "broken", "its state file is missing", layout.folder, ())
        return _describe(layout, state)

    def find(self, host: str) -> LabHost:
        """A host by 'LAB/HOST', or by its own name where only one lab has such a host.

        Raises:
            NotFoundError: there is none.
            ConflictError: several labs have one.
        """
        lab, _, hostname = host.rpartition("/")
        if lab:
            return self.get(lab).host(hostname)
        found = [h for h in self.list() if h.hostname == hostname]
        if not found:
            raise NotFoundError(f"no lab has a host {quoted(host)}", hint="see: vmkit lab list; vmkit lab up pair")
        if len(found) > 1:
            names = " or ".join(h.name for h in found)
            raise ConflictError(f"several labs have a host {quoted(host)}", hint=f"say which: {names}")
        return found[0]

    # -- running things in it

    def exec(self, host: str, argv: Sequence[str]) -> None:
        """Become a program that runs in a host, as root, with this process's terminal, streams and working group.

        It does not return. The exit status is the program's own; 127 if the host has no such program.

        Raises:
            RefusedError: not root.
            NotFoundError: no such host.
            ConflictError: the host does not run.
        """
        replace(self._entering(host, argv))

    def run(
        self, host: str, argv: Sequence[str], *, stdin: str | bytes | None = None, timeout: float = 120.0
    ) -> Completed:
        """Run a program in a host to its end and return what it left; any exit status is an answer.

        Raises:
            RefusedError: not root.
            NotFoundError: no such host.
            ConflictError: the host does not run.
            DeadlineError: it did not end within `timeout` seconds.
        """
        return run(self._entering(host, argv), stdin=stdin, timeout=timeout, check=False)

    def _entering(self, host: str, argv: Sequence[str]) -> Sequence[str]:
        if not argv:
            raise SpecError("no program was named", path="CMD", hint=f"vmkit lab exec {host} -- virsh list")
        _need_root(f"vmkit lab exec {host} -- ...")
        found = self.find(host)
        if found.pid is None:
            raise ConflictError(f"the host {found.name} is {found.state}: {found.problem}", hint=_again(found.lab))
        enter = ["nsenter", f"--target={found.pid}", "--net", "--mount", "--uts", "--pid", "--"]
        # These would lead virsh and vmkit in the host to some other host.
        return [*enter, "env", "-u", "LIBVIRT_DEFAULT_URI", "-u", "VMKIT_CONNECT", f"HOME={config.HOME}", *argv]

    # -- parts

    @staticmethod
    def _ready(layout: Layout, reporter: Reporter) -> Lab | None:
        """The lab if it is up. Else what is there of it is removed, so that it can be made."""
        if not layout.folder.exists() and not processes(layout):
            return None
        state = load(layout)
        if state is not None and state.phase is Phase.UP:
            lab = _describe(layout, state)
            if lab.state == "up":
                reporter(Note(f"the lab {lab.name} is up already"))
                return lab
            if running := guests(processes(layout)):
                raise ConflictError(
                    f"the lab {lab.name} is broken ({lab.problem}), and {len(running)} guests still run in it",
                    hint=_again(lab.name),
                )
        reporter(Note(f"removing what an earlier lab {layout.name} left behind", warning=True))
        erase(layout)
        return None

    @staticmethod
    def _build(layout: Layout, state: LabState, hosts: int, reporter: Reporter) -> None:
        from vmkit.lab import pair

        try:
            ensure_dir(layout.folder)
            save(layout, state)
            pair.build(layout, state, hosts, reporter)
        except BaseException:
            erase(layout)
            raise

    @staticmethod
    def _names() -> Sequence[str]:
        if inside():
            raise _inside()
        folder = home() / "lab"
        try:
            return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return []


def _describe(layout: Layout, state: LabState) -> Lab:
    hosts, switch = running_hosts(layout, state)
    plan = state.plan
    rows = [] if plan is None else [_row(layout, state, h, hosts.get(h.name), switch) for h in plan.hosts]
    if not rows:
        return Lab(layout.name, state.kind, "broken", f"it is {state.phase.value}", layout.folder, ())
    states = {r.state for r in rows}
    overall = states.pop() if len(states) == 1 else "broken"
    problem = "; ".join(dict.fromkeys(f"{r.hostname}: {r.problem}" for r in rows if r.problem))
    return Lab(layout.name, state.kind, overall, problem, layout.folder, tuple(rows))


def _row(layout: Layout, state: LabState, host: HostPlan, reality: HostReality | None, switch: bool) -> LabHost:
    plan = state.plan
    assert plan is not None  # noqa: S101 - a host comes from a plan
    problems = []
    if state.phase is not Phase.UP:
        problems.append(f"the lab is {state.phase.value}")
    if os.geteuid() != 0:
        problems.append("only root can see whether it runs")
    elif reality is None:
        problems.append("it does not run")
    elif reality.missing:
        problems.append(f"{' and '.join(reality.missing)} has ended")
    if not switch and os.geteuid() == 0:
        problems.append("the lab's switch does not run")
    return LabHost(
        name=f"{layout.name}/{host.name}",
        lab=layout.name,
        hostname=host.name,
        kind=state.kind,
        state=_state(reality, problems),
        problem=", ".join(problems),
        uri=config.uri(layout, host),
        ssh=Ssh(host.address, 22, "root", layout.key, layout.known_hosts),
        address=host.address,
        subnet=str(plan.subnet),
        gateway=plan.gateway,
        dhcp=plan.dhcp,
        static=plan.static,
        pid=reality.init if reality else None,
    )


def _state(reality: HostReality | None, problems: Sequence[str]) -> str:
    if os.geteuid() != 0:
        return "unknown"
    if not problems:
        return "up"
    return "down" if reality is None else "broken"


def _layout(name: str) -> Layout:
    if inside():
        raise _inside()
    return Layout.of(home(), check_name(name))


def _need_root(command: str) -> None:
    if os.geteuid() != 0:
        raise RefusedError("a lab is made of namespaces and daemons that only root may start", hint=f"sudo {command}")


def _inside() -> RefusedError:
    return RefusedError(
        "this is a host of a lab, and labs are not seen from inside", hint="run it on the machine itself"
    )


def _unknown(name: str, known: Sequence[str]) -> NotFoundError:
    there = f"there is: {', '.join(known)}" if known else "there is none; make one: vmkit lab up pair"
    return NotFoundError(f"no lab named {quoted(name)}", hint=there)


def _again(name: str) -> str:
    return f"vmkit lab down {name} && vmkit lab up pair --name {name}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
