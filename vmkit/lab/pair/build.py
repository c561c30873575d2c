"""Bringing up a pair lab: files, wires, hosts, and the wait until each answers."""

from __future__ import annotations

import json
import queue
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

from vmkit.errors import DeadlineError, EffectError, VmkitError
from vmkit.hypervisor.host import Host
from vmkit.lab.layout import FURNISHED, MARK, Layout
from vmkit.lab.pair import config
from vmkit.lab.pair.blueprint import Blueprint, HostPlan, blueprint, free_subnets
from vmkit.lab.pair.network import Wires, wired
from vmkit.lab.pair.reality import running_hosts
from vmkit.lab.state import LabState, Phase, save
from vmkit.progress import Finished, Reporter, Started
from vmkit.system.clock import Deadline, stopwatch
from vmkit.system.process import ProcessId, find_program, run, spawn

_BUSY = "the machine may be busy: see what runs (top), and try again"
ANSWER_WITHIN = 60.0
"""Seconds for libvirt of a new host to answer. It takes 1 to 3; the first start on a machine probes QEMU for longer."""

_PACKAGES = {
    "dnsmasq": "dnsmasq-base",
    "libvirtd": "libvirt-daemon-system",
    "nsenter": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "sshd": "openssh-server",
    "unshare": "util-linux",
    "virtlogd": "libvirt-daemon-system",
}


def programs() -> dict[str, Path]:
    """Where the programs of a pair lab are.

    Raises:
        UnsupportedError: one is not installed; the hint names its Debian package.
    """
    return {name: find_program(name, package=package) for name, package in _PACKAGES.items()}


def build(layout: Layout, state: LabState, hosts: int, reporter: Reporter) -> LabState:
    """Make everything of a lab whose folder is empty but for its state; the caller tears down after an error.

    Raises:
        EffectError: a program failed; the details are the end of its log.
        DeadlineError: a host does not answer in time.
        UnsupportedError: a program is missing.
    """
    found = programs()
    current = state

    def settled(plan: Blueprint) -> None:
        nonlocal current
        current = state.at(Phase.BUILDING, plan.plain())
        save(layout, current)

    with wired(_plans(layout.name, hosts), settled, layout.alias) as (plan, wires):
        with _step(reporter, "files", f"{plan.subnet}"):
            _write_files(layout, plan, found)
        with _step(reporter, "hosts", ", ".join(h.name for h in plan.hosts)):
            supervisors = _start(layout, plan, wires, found)
    _all_answer(layout, plan, supervisors, reporter)
    if not running_hosts(layout, plan)[1]:
        raise EffectError(
            "the lab's DHCP server ended while it started",
            details=_log_tails(layout, "switch"),
            hint="see its last lines above; another program may serve DHCP on the lab's addresses: ss -lunp",
        )
    current = current.at(Phase.UP)
    save(layout, current)
    return current


def _plans(name: str, hosts: int) -> Iterator[Blueprint]:
    from vmkit.system.netlink import Links

    with Links() as own:
        taken = own.networks()
    machine = Path("/etc/machine-id")
    identity = machine.read_text().strip() if machine.exists() else "no machine-id"
    for subnet in free_subnets(name, taken):
        yield blueprint(name, hosts, subnet, identity)


# -- files


def _write_files(layout: Layout, plan: Blueprint, found: dict[str, Path]) -> None:
    layout.pool.mkdir()
    layout.logs("switch").mkdir(parents=True)
    _keygen(found, layout.key)
    public = layout.key.with_suffix(".pub").read_text()
    passwd = config.passwd(Path("/etc/passwd").read_text())
    keys = {}
    for host in plan.hosts:
        own = layout.host(host.name)
        for folder in config.host_folders():
            (own / folder).mkdir(parents=True)
        for name, text in config.host_files(layout, plan, host).items():
            (own / name).write_text(text)
        (own / "passwd").write_text(passwd)
        (own / "shadow").chmod(0o600)
        (own / "etc-ssh/authorized_keys").write_text(public)
        _keygen(found, own / "etc-ssh/ssh_host_ed25519_key")
        keys[host.name] = (own / "etc-ssh/ssh_host_ed25519_key.pub").read_text()
        wanted = config.init_config(layout, host, found)
        (own / "init.json").write_text(json.dumps(wanted.plain(), indent=1))
        _seed_cache(own / "var-cache-libvirt")
    layout.known_hosts.write_text(config.known_hosts(plan, keys))
    layout.ssh_config.write_text(config.ssh_config(layout, plan))
    layout.ssh.write_text(config.ssh_wrapper(layout))
    layout.ssh.chmod(0o755)
    (layout.folder / "switch/dnsmasq.conf").write_text(config.dnsmasq_conf(layout, plan))


def _keygen(found: dict[str, Path], path: Path) -> None:
    run([found["ssh-keygen"], "-q", "-t", "ed25519", "-N", "", "-C", "vmkit lab", "-f", path])


def _seed_cache(target: Path) -> None:
    """Copy what the machine's libvirt knows of its QEMU binaries, which saves each host from probing them again."""
    source = Path("/var/cache/libvirt/qemu/capabilities")
    if source.is_dir():
        shutil.copytree(source, target / "qemu/capabilities")


# -- processes


def _start(layout: Layout, plan: Blueprint, wires: Wires, found: dict[str, Path]) -> dict[str, ProcessId]:
    """Start the switch's server and each host; returns the process above each host's init, by the host's name."""
    mark = {MARK: str(layout.folder)}
    with wires.switch.entered():
        conf = layout.folder / "switch/dnsmasq.conf"
        spawn([found["dnsmasq"], f"--conf-file={conf}"], log=layout.logs("switch") / "dnsmasq.log", env=mark)
    supervisors = {}
    for host in plan.hosts:
        with wires.hosts[host.name].entered():
            supervisors[host.name] = spawn(
                [
                    *(found["unshare"], "--mount", "--propagation=slave", "--uts", "--pid", "--fork", "--kill-child"),
                    *(
                        "--mount-proc",
                        "--",
                        sys.executable,
                        "-P",
                        "-m",
                        "vmkit.lab.pair.init",
                        layout.host(host.name) / "init.json",
                    ),
                ],
                log=layout.logs(host.name) / "init.log",
                env=mark,
            )
    return supervisors


# -- answers


def _all_answer(layout: Layout, plan: Blueprint, supervisors: dict[str, ProcessId], reporter: Reporter) -> None:
    """Wait for all hosts at once. The first failure is raised at once; threads that hang in libvirt are left behind,
    and the tear-down that follows, which ends their servers, ends them.
    """
    deadline = Deadline(ANSWER_WITHIN)
    outcomes: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def wait_for(host: HostPlan) -> None:
        try:
            _answers(layout, plan, host, supervisors[host.name], deadline, reporter)
            outcomes.put(None)
        except BaseException as e:
            outcomes.put(e)

    for host in plan.hosts:
        threading.Thread(target=wait_for, args=(host,), daemon=True).start()
    for _ in plan.hosts:
        try:
            # A little longer than the waits inside, whose messages are better.
            failed = outcomes.get(timeout=deadline.left + 10)
        except queue.Empty:
            tails = tuple(line for h in plan.hosts for line in _log_tails(layout, h.name))
            raise DeadlineError(
                f"the hosts do not answer within {deadline.seconds:g} s", details=tails, hint=_BUSY
            ) from None
        if failed is not None:
            raise failed


def _answers(
    layout: Layout, plan: Blueprint, host: HostPlan, supervisor: ProcessId, deadline: Deadline, reporter: Reporter
) -> None:
    """Wait until the host's libvirt and ssh answer, and give it its storage pool and network."""
    with _step(reporter, f"libvirt on {host.name}"):
        init = _wait_for_socket(layout, plan, host, supervisor, deadline)
        try:
            _furnish(layout, host, init)
        except VmkitError as e:
            raise _failed(layout, host, f"libvirt of {host.name}: {e}") from e
    with _step(reporter, f"ssh to {host.name}", host.address):
        done = run([layout.ssh, host.address, "true"], timeout=deadline.left + 5, check=False)
        if done.status != 0:
            raise _failed(layout, host, f"ssh to {host.name}: {done.stderr.strip() or f'status {done.status}'}")


def _wait_for_socket(layout: Layout, plan: Blueprint, host: HostPlan, supervisor: ProcessId, deadline: Deadline) -> int:
    """Number of the host's init, once its libvirtd listens."""

    def probe() -> int | None:
        if not supervisor.alive():
            raise _failed(layout, host, f"the host {host.name} ended while it started")
        reality = running_hosts(layout, plan)[0].get(host.name)
        if reality is None:
            return None
        root = f"/proc/{reality.init}/root"
        for ended in Path(root + FURNISHED).glob("*"):
            raise _failed(layout, host, f"{host.name} cannot start: {ended.read_text().strip()}")
        there = Path(root + FURNISHED).exists() and Path(root + config.LIBVIRT_SOCKET).exists()
        return reality.init if there else None

    try:
        return deadline.wait_for(f"libvirt of {host.name}", probe, interval=0.05) or 0
    except DeadlineError as e:
        raise DeadlineError(e.message, details=_log_tails(layout, host.name), hint=_BUSY) from e


def _furnish(layout: Layout, plan: HostPlan, init: int) -> None:
    """Define pool and network, over the host's own socket: an ssh log-in costs a third of a second."""
    with Host.connect(f"qemu+unix:///system?socket=/proc/{init}/root{config.LIBVIRT_SOCKET}") as host:
        answered = ET.fromstring(host.capabilities()).findtext("host/uuid")  # noqa: S314 - from our own daemon
        if answered != plan.uuid:
            raise EffectError(
                f"the libvirt that answers has the uuid {answered}, and not {plan.uuid}",
                hint="take the lab down and up again: vmkit lab down",
            )
        host.define_pool(config.pool_xml(layout))
        host.define_network(config.network_xml())


def _failed(layout: Layout, host: HostPlan, text: str) -> VmkitError:
    return EffectError(text, details=_log_tails(layout, host.name))


def _log_tails(layout: Layout, part: str, lines: int = 6) -> tuple[str, ...]:
    """The last lines of each log of a host, under the log's name."""
    found: list[str] = []
    for log in sorted(layout.logs(part).glob("*.log")):
        tail = log.read_text(errors="replace").splitlines()[-lines:]
        found += [f"{part}/{log.name}: {line}" for line in tail]
    return tuple(found)


@contextmanager
def _step(reporter: Reporter, name: str, text: str = "") -> Iterator[None]:
    """Tell the reporter that a part of the work began, and how long it took once it has ended well."""
    reporter(Started(name, text))
    watch = stopwatch()
    yield
    reporter(Finished(name, watch(), text))
