"""Whom to log in as, where, and with which key. What is known about a guest decides; `find` gathers that."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from vmkit.errors import ConflictError, DeadlineError, RefusedError, VmkitError
from vmkit.image import keys as image_keys
from vmkit.progress import Note, Reporter, silent
from vmkit.system.clock import Deadline
from vmkit.system.files import ensure_dir, home, write_atomic
from vmkit.system.openssh import Server
from vmkit.system.shell import Shell
from vmkit.vm import forward, guest, reach
from vmkit.vm.addresses import Address
from vmkit.vm.describe import Nic, describe
from vmkit.vm.machine import Vm
from vmkit.vm.metadata import Access, Remembered
from vmkit.vm.xml import AGENT_CHANNEL

PORT: Final = 22
_SILENT: Final = 3.0
"""Seconds until a word is said about waiting."""


def find(
    vm: Vm,
    *,
    user: str | None = None,
    keys: Sequence[Path] = (),
    port: int | None = None,
    deadline: float = 60.0,
    reporter: Reporter = silent,
) -> Server:
    """The ssh server of a guest, once it greets.

    Args:
        vm: a running one.
        user: account; None for whom the guest's seed let in.
        keys: private keys in place of those that the seed let in.
        port: of the ssh server, as the guest sees it; None for 22.
        deadline: seconds to wait for an address, and for the server's greeting.
        reporter: told what is being waited for.

    Raises:
        ConflictError: it does not run.
        RefusedError: it is on a user network without a forward, or who logs in is not known.
        DeadlineError: it has no address, or no ssh server greets, in time.
    """
    if not vm.state.active:
        raise ConflictError(f"{vm.name} is {vm.state.value}", hint=f"vmkit start {vm.name}")
    memory = vm.remembered()
    who = user or user_of(memory)
    if who is None:
        raise RefusedError(f"who may log in to {vm.name} is not known", hint=f"say it: vmkit ssh --user NAME {vm.name}")
    address, number = _greeting(vm, port or PORT, Deadline(deadline), reporter)
    known_hosts, known = _host_keys(vm)
    access = memory.access if memory else None
    return Server(
        address=address,
        port=number,
        user=who,
        alias=alias(vm.uuid),
        known_hosts=known_hosts,
        known=known,
        keys=tuple(keys) or keys_for(access, _candidates()),
        proxy=proxy(vm.domain.host.uri),
    )


def user_of(memory: Remembered | None) -> str | None:
    """Whom the seed let in; where it does not say, the image's default user, as far as it is known here."""
    from vmkit.image.api import Images

    if memory is None:
        return None
    if memory.access and memory.access.user:
        return memory.access.user
    if memory.image:
        with contextlib.suppress(VmkitError):
            return Images().get(memory.image).user
    return None


def keys_for(access: Access | None, own: Mapping[Path, str]) -> tuple[Path, ...]:
    """Private keys that the guest takes, of those that are here; none if none is known to. Pure."""
    if access is None:
        return ()
    taken = {" ".join(key.split()[:2]) for key in access.keys}
    return tuple(path for path, public in own.items() if " ".join(public.split()[:2]) in taken)


def keys_here(access: Access | None) -> tuple[Path, ...]:
    """Private keys of vmkit and of this user that the guest takes."""
    return keys_for(access, _candidates())


def _candidates() -> dict[Path, str]:
    own = image_keys.own_public_key()
    first = {image_keys.own_key_path(): own} if own and image_keys.own_key_path().exists() else {}
    return {**first, **image_keys.user_keys()}


def alias(uuid: str) -> str:
    """The name of a VM in its known_hosts: addresses are given to another VM one day."""
    return f"vmkit-{uuid}"


def known_hosts_path(uuid: str) -> Path:
    """The file with a VM's host keys."""
    return home() / "ssh" / "known_hosts" / uuid


def forget(uuid: str) -> None:
    """Remove what is kept on this machine about getting into a VM."""
    with contextlib.suppress(OSError):
        known_hosts_path(uuid).unlink(missing_ok=True)


def proxy(uri: str) -> tuple[str, ...]:
    """The command that leads to a guest by way of its host; empty where that is this machine. Pure.

    Raises:
        UnsupportedError: the host is another machine, and its URI does not lead through ssh.
    """
    shell = Shell.of_uri(uri)
    if not shell.remote:
        return ()
    *options, dashes, host, _script = shell.argv
    return (*options, "-W", "%h:%p", dashes, host)


def entrance(best: Address | None, nics: Sequence[Nic], port: int) -> tuple[str, int] | None:
    """Address and port by which the guest's host gets to a port of the guest; None if there is no way. Pure."""
    if best is not None and best.reachable:
        return best.ip, port
    for text in (t for nic in nics for t in nic.forwards):
        way = forward.parse(text)
        if way.protocol == "tcp" and way.guest_port == port:
            return ("127.0.0.1" if way.address == "0.0.0.0" else way.address), way.host_port  # noqa: S104
    return None


def agent_connected(xml: str) -> bool:
    """Whether a guest agent has opened its channel, as libvirt sees it in a running domain's XML. Pure."""
    root = ET.fromstring(xml)  # noqa: S314 - libvirt's own answer
    targets = root.iterfind("devices/channel/target")
    return any(t.get("name") == AGENT_CHANNEL and t.get("state") == "connected" for t in targets)


def _greeting(vm: Vm, port: int, deadline: Deadline, reporter: Reporter) -> tuple[str, int]:
    """Where the ssh server greets; waits for it."""
    nics = describe(vm.domain.xml()).nics
    if not nics:
        raise RefusedError(f"{vm.name} has no network card", hint=f"vmkit exec {vm.name}, or vmkit console {vm.name}")
    if all(n.network.startswith("user") for n in nics) and entrance(None, nics, port) is None:
        raise RefusedError(
            f"{vm.name} is on a user network, which lets nobody in",
            hint=f"vmkit exec {vm.name} goes by the guest agent; or give it a forward: --nic user,forward=2222:{port}",
        )
    told = False
    where: tuple[str, int] | None = None
    while True:
        where = entrance(vm.addresses().best, nics, port)
        if where and (opened := reach.port(vm.domain.host, *where)) and opened.banner.startswith("SSH-"):
            return where
        if not told and deadline.elapsed > _SILENT:
            what = f"ssh on {where[0]} port {where[1]}" if where else "an address"
            reporter(Note(f"{vm.name}: waiting for {what}"))
            told = True
        if deadline.passed:
            what = f"no ssh server greets on {where[0]} port {where[1]}" if where else "it has no address"
            raise DeadlineError(
                f"{vm.name} cannot be reached by ssh within {deadline.seconds:g} s: {what}",
                hint=f"vmkit wait {vm.name} --for ssh says more; vmkit exec {vm.name} goes by the guest agent",
            )
        _pause(deadline)


def _pause(deadline: Deadline) -> None:
    import time

    time.sleep(min(1.0, deadline.left))


def _host_keys(vm: Vm) -> tuple[Path, bool]:
    """The VM's known_hosts file, and whether its keys came by a way that nobody else can write to: the agent."""
    path = known_hosts_path(vm.uuid)
    ensure_dir(path.parent, 0o700)
    if not agent_connected(vm.domain.xml()):
        return path, False
    script = "cat /etc/ssh/ssh_host_*_key.pub"
    with contextlib.suppress(VmkitError):
        text = guest.run(vm.domain, ["sh", "-c", script], timeout=10.0, patience=5).stdout
        lines = [
            f"{alias(vm.uuid)} {' '.join(line.split()[:2])}\n" for line in text.splitlines() if len(line.split()) > 1
        ]
        if lines:
            write_atomic(path, "".join(lines), mode=0o600)
            return path, True
    return path, False
