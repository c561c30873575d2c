"""What `vmkit.lab.kinds.Kind` asks of a kind, for nested hosts."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmkit.errors import ConflictError, SpecError
from vmkit.lab.layout import Layout, check_folder
from vmkit.lab.model import LabHost, Ssh
from vmkit.lab.nested import config
from vmkit.lab.nested.blueprint import DHCP, STATIC, SUBNET, Blueprint, HostPlan
from vmkit.lab.nested.flavour import Flavour
from vmkit.lab.nested.options import HostOptions, check_hosts
from vmkit.lab.reality import machines
from vmkit.lab.state import LabState, Phase
from vmkit.progress import Reporter
from vmkit.system.lines import check_socket_path


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for: how many hosts, and with what."""

    hosts: int
    options: HostOptions


@dataclass(frozen=True, slots=True)
class NestedKind:
    """The functions of `Kind` for one kind of nested hosts.

    Attributes:
        options: the class of its options, whose defaults are what a host gets.
        flavour: what it does its own way; asked for only where hosts are made.
    """

    options: type[HostOptions]
    flavour: Callable[[], Flavour]

    def needs_root(self) -> str:
        """Nested hosts are QEMU processes of whoever starts them; only their image has to be built by root, once."""
        return ""

    def wish(self, hosts: int | None, options: object) -> Wish:
        """What is asked for, checked.

        Raises:
            SpecError: it cannot be.
        """
        if options is not None and not isinstance(options, self.options):
            raise SpecError("not options of such nested hosts", path="options")
        wanted = options or self.options()  # type: ignore[call-arg]
        return Wish(check_hosts(1 if hosts is None else hosts), wanted.checked())

    def check_place(self, layout: Layout) -> None:
        """See that a lab can live in its folder.

        Raises:
            RefusedError: it cannot.
        """
        check_folder(layout.folder)
        check_socket_path(layout.folder / "booting" / "channel")

    def check_same(self, state: LabState, wished: Wish) -> None:
        """See that a lab which is up is what is wished for now.

        Raises:
            ConflictError: it is not.
        """
        plan = Blueprint.parse(state.plan, self.options) if state.plan else None
        if plan is None or (len(plan.hosts), plan.options) != (wished.hosts, wished.options):
            raise ConflictError(
                f"the lab {state.name} is up, with other hosts than are asked for now",
                hint=f"vmkit lab down {state.name} first, or choose another name with --name",
            )

    def build(self, layout: Layout, state: LabState, wished: Wish, reporter: Reporter) -> None:
        """Make all of a lab whose folder holds nothing but its state; the caller tears down after an error."""
        from vmkit.lab.nested import build as making

        making.build(self.flavour(), layout, state, wished.hosts, wished.options, reporter)

    def entering(self, layout: Layout, host: LabHost, argv: Sequence[str], terminal: bool) -> Sequence[str]:
        """The command that runs a program in a host, over ssh."""
        shown = ["-t"] if terminal else ["-T"]
        return [str(layout.ssh), *shown, "--", host.hostname, shlex.join(argv)]

    def describe(self, layout: Layout, state: LabState) -> tuple[LabHost, ...]:
        """The hosts as they are now."""
        if state.plan is None:
            return ()
        plan = Blueprint.parse(state.plan, self.options)
        running = {_hostname(m.id.pid): m.id.pid for m in machines(layout)}
        return tuple(_row(layout, state, plan, h, running.get(h.name)) for h in plan.hosts)


def _row(layout: Layout, state: LabState, plan: Blueprint, host: HostPlan, pid: int | None) -> LabHost:
    problems = [f"the lab is {state.phase.value}"] if state.phase is not Phase.UP else []
    if pid is None:
        problems.append("it does not run")
    return LabHost(
        name=f"{layout.name}/{host.name}",
        lab=layout.name,
        hostname=host.name,
        kind=state.kind,
        state="up" if not problems else "down" if pid is None else "broken",
        problem=", ".join(problems),
        uri=config.uri(state.kind, layout, host),
        ssh=Ssh("127.0.0.1", host.port, "root", layout.key, layout.known_hosts),
        address=host.address,
        subnet=SUBNET,
        gateway="",
        dhcp=DHCP,
        static=STATIC,
        pid=pid,
        accel=plan.accel,
    )


def _hostname(pid: int) -> str:
    """A host's name is in the name that its QEMU was given: guest=LAB/HOST."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return ""
    name = next((w.decode(errors="replace") for w in words if w.startswith(b"guest=")), "")
    return name.rpartition("/")[2]
