"""Bringing up nested hosts: image, saved machine, keys, hosts, and the wait until each answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from vmkit.errors import EffectError, RefusedError, VmkitError
from vmkit.hypervisor.host import Host
from vmkit.lab.layout import Layout
from vmkit.lab.nested import config, machine
from vmkit.lab.nested.blueprint import Blueprint, HostPlan, blueprint
from vmkit.lab.nested.booted import Booted, again_after_crash, booted, overlay
from vmkit.lab.nested.flavour import Flavour
from vmkit.lab.nested.hardware import Engine, Files
from vmkit.lab.nested.image import HostImage, build_image
from vmkit.lab.nested.options import HostOptions
from vmkit.lab.nested.payload import images, keygen, write_payload
from vmkit.lab.state import LabState, Phase, save
from vmkit.lab.together import step, with_all
from vmkit.progress import Advanced, Note, Reporter
from vmkit.system.files import ensure_dir
from vmkit.system.lines import LineSocket, check_socket_path, free_port
from vmkit.system.meminfo import available_memory
from vmkit.system.process import find_program
from vmkit.values import Bytes

_SPARE: Final = Bytes.parse("512M")
"""Memory that this machine keeps for itself; a host takes its own, and TCG up to 512 MiB for what it translates."""
_UP_WITHIN: Final = 1800.0
_PACKAGES: Final = {"qemu-img": "qemu-utils", "ssh": "openssh-client", "ssh-keygen": "openssh-client"}


def check_memory(hosts: int, options: HostOptions) -> None:
    """See that this machine has the memory for the hosts.

    Raises:
        RefusedError: it has not.
    """
    wanted, there = Bytes(hosts * options.memory + _SPARE), available_memory()
    if there < wanted:
        raise RefusedError(
            f"{hosts} host{'s' if hosts > 1 else ''} of {options.memory} need {wanted} of memory, and {there} are free",
            hint="give them less (--memory 2G), make fewer, or end something: free -h",
        )


def build(
    flavour: Flavour, layout: Layout, state: LabState, hosts: int, options: HostOptions, reporter: Reporter
) -> None:
    """Make all of a lab whose folder holds nothing but its state; the caller tears down after an error.

    Raises:
        RefusedError: no memory, no space, or not root where the image has to be built.
        UnsupportedError: a program is missing.
        EffectError, DeadlineError: a host does not come up; the details are the end of what it said.
    """
    for program, package in _PACKAGES.items():
        find_program(program, package=package)
    check_memory(hosts, options)
    layout.folder.chmod(0o700)
    engine, reason = flavour.choose_engine(options, reporter)
    reporter(Note(f"hosts run on {_named(engine)}: {reason}"))
    image = build_image(flavour, reporter)
    seeded = images(reporter) if flavour.carries else []
    base = booted(layout, flavour, engine, options, image, reporter)
    machine_id = Path("/etc/machine-id")
    identity = machine_id.read_text().strip() if machine_id.exists() else "no machine-id"
    ports = [free_port() for _ in range(hosts)]
    plan = blueprint(flavour.kind, layout.name, options, (engine.accel, reason), ports, identity)
    plan = replace(plan, uses=_uses(engine, image, base))
    current = state.at(Phase.BUILDING, plan.plain())
    save(layout, current)
    with step(reporter, "files", ", ".join(h.name for h in plan.hosts)):
        _write_files(layout, plan)
        for host in plan.hosts:
            write_payload(layout.host(host.name) / "payload", layout, flavour, plan, host, seeded)
    up = partial(_up, layout, flavour, plan, base, reporter)

    def attempt() -> None:
        for host in plan.hosts:
            overlay(base, layout.host(host.name) / "disk.qcow2")
        with_all(_start(layout, flavour, plan, engine, image, base), up, what="the hosts are up", timeout=_UP_WITHIN)

    again_after_crash(layout, [layout.host(h.name) for h in plan.hosts], attempt, reporter)
    for host in plan.hosts:
        (layout.host(host.name) / "payload").write_bytes(b"")  # it held keys, and nobody reads it again
    save(layout, current.at(Phase.UP))


def _named(engine: Engine) -> str:
    version = ".".join(map(str, engine.version))
    return f"KVM, QEMU {version}" if engine.accel == "kvm" else f"TCG (emulation), QEMU {version}"


def _uses(engine: Engine, image: HostImage, base: Booted) -> tuple[str, ...]:
    old = (engine.libraries.parent.name,) if engine.libraries else ()
    return tuple(dict.fromkeys((image.name, base.name, *old)))


def _write_files(layout: Layout, plan: Blueprint) -> None:
    ensure_dir(layout.pool, 0o711)
    keygen(layout.key, f"vmkit lab {layout.name}")
    keys = {}
    for host in plan.hosts:
        own = ensure_dir(layout.host(host.name), 0o700)
        keys[host.name] = keygen(own / "ssh_host_ed25519_key", host.name)
    layout.known_hosts.write_text(config.known_hosts(plan, keys))
    layout.ssh_config.write_text(config.ssh_config(layout, plan))
    layout.ssh.write_text(config.ssh_wrapper(layout))
    layout.ssh.chmod(0o755)


def host_files(layout: Layout, plan: Blueprint, number: int, image: HostImage) -> Files:
    """What the host with this number (from 0) has for itself. Hosts form a chain."""
    host = plan.hosts[number]
    own = layout.host(host.name)
    before = layout.host(plan.hosts[number - 1].name) / "right" if number else None
    payload, disk = own / "payload", own / "disk.qcow2"
    files = Files(
        own, disk, image.kernel, image.initrd, payload, layout.pool, host.port, before, hypervisor=image.hypervisor
    )
    for path in (files.channel, files.right):
        check_socket_path(path)
    return files


def wires(plan: Blueprint, name: str) -> list[str]:
    """Which wires of a host have another host at their other end."""
    names = [h.name for h in plan.hosts]
    ends = {"left": name != names[0], "right": name != names[-1]}
    return [wire for wire, connected in ends.items() if connected]


def _start(
    layout: Layout, flavour: Flavour, plan: Blueprint, engine: Engine, image: HostImage, base: Booted
) -> Sequence[machine.Machine]:
    """Start every QEMU, one after the other: each listens for the next."""
    found = []
    for number, host in enumerate(plan.hosts):
        files = host_files(layout, plan, number, image)
        begun = machine.start(layout.folder, host.name, flavour, engine, plan.options, files, base.state)
        machine.listens(begun)
        found.append(begun)
    return found


def _up(
    layout: Layout, flavour: Flavour, plan: Blueprint, base: Booted, reporter: Reporter, running: machine.Machine
) -> None:
    """Have a host take on its identity, and see that its libvirt is the one that it should be."""
    name = running.name
    with LineSocket.open(running.files.channel, timeout=60.0) as channel:
        if base.state is not None:
            with step(reporter, f"{name} loaded"):
                machine.loaded(running)
        else:
            with step(reporter, f"{name} booted"):
                machine.booted(running, channel, lambda s: reporter(Advanced(f"{name} booted", s)))
        machine.connect_wires(running, wires(plan, name))
        with step(reporter, f"{name} settled"):
            machine.settle(running, channel, lambda what: reporter(Advanced(f"{name} settled", 0, None, what)))
    host = next(h for h in plan.hosts if h.name == name)
    with step(reporter, f"{name} answers", config.uri(flavour.kind, layout, host)):
        _answers(flavour.kind, layout, host, running)


def _answers(kind: str, layout: Layout, host: HostPlan, running: machine.Machine) -> None:
    try:
        with Host.connect(config.uri(kind, layout, host)) as found:
            answered = ET.fromstring(found.capabilities()).findtext("host/uuid")  # noqa: S314 - from our own host
    except VmkitError as e:
        raise running.failed(f"libvirt of {host.name} over ssh: {e.message}") from e
    # Libvirt's driver for Xen names no uuid (seen with 9.0); there the host's ssh key alone vouches for it.
    if answered not in (host.uuid, *([None] if kind == "xen" else [])):
        raise EffectError(
            f"the libvirt that answers has the uuid {answered}, and not {host.uuid}",
            hint="another machine has its port; take the lab down and up again: vmkit lab down",
        )
