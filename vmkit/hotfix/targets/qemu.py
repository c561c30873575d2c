"""The QEMU processes of a host's running domains, and the guests on them.

libvirt says which domains run; /proc says which process each of them is. So this works where the processes can be seen:
on the host itself, whatever the URI.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass

from vmkit.errors import ConflictError, NotFoundError, RefusedError, UnsupportedError
from vmkit.hotfix.targets.process import ProcessImage
from vmkit.hypervisor.domain import Domain, DomainState
from vmkit.hypervisor.host import Host
from vmkit.system.elf import Binary, read_binary
from vmkit.system.procmem import Mapping, Running, executable_path, mappings, running, thread_state, tracer_of

_MOVING = frozenset({"migration", "starting up", "post-copy", "post-copy failed", "save", "dump", "snapshot"})
"""Reasons of the paused state that mean: another operation holds this domain."""


class QemuGuest:
    """The guest of one domain: it can be paused and resumed.

    Attributes:
        name, uuid: of the domain.
        runs: whether its vCPUs ran when it was looked at.
    """

    def __init__(self, domain: Domain, *, runs: bool) -> None:
        self.name = domain.name
        self.uuid = domain.uuid
        self.runs = runs
        self._domain = domain

    def expect_running(self) -> None:
        """Look once more before the pause.

        Somebody who pauses it between this look and the pause is not noticed: libvirt has no conditional suspend.

        Raises:
            ConflictError: it does not run any more.
        """
        state = self._domain.state()
        if state is not DomainState.RUNNING:
            raise ConflictError(f"{self.name} is {state.value} now")

    def pause(self) -> None:
        """Let the vCPUs stand; done when it returns."""
        self._domain.suspend()

    def resume(self) -> None:
        """Let the vCPUs run; nothing to do for a guest that runs or has ended."""
        try:
            self._domain.resume()
        except (
            RefusedError
        ):  # libvirt's answer for a guest that runs, or is gone; asking first would lengthen the pause
            if needs_resume(self._domain):
                raise


class QemuImage(ProcessImage):
    """One QEMU process.

    Attributes:
        guest: its guest.
        binary: headers of the file that it runs.
        path: what the kernel calls that file.
        bias: bytes between link addresses and addresses in its memory.
    """

    def __init__(self, process: Running, guest: QemuGuest, binary: Binary) -> None:
        super().__init__(process.id, f"the QEMU of {guest.name} (process {process.id.pid})")
        self.guest = guest
        self.binary = binary
        self.path = executable_path(process.id.pid)
        self.bias = load_bias(binary, [m for m in mappings(process.id.pid) if m.path == self.path], self.label)

    def check_build(self) -> None:
        """Compare the build id in memory with that of the file, so that the headers are those of what runs.

        Raises:
            RefusedError: they differ.
        """
        wanted = bytes.fromhex(self.binary.build_id)
        if self.binary.build_id_address is None:
            raise RefusedError(f"{self.label} does not load its build id, so it cannot be told what runs")
        found = self.read(self.binary.build_id_address + self.bias, len(wanted))
        if found != wanted:
            raise RefusedError(
                f"{self.label} has build {found.hex()[:12]} in memory, its file is {self.binary.build_id[:12]}"
            )


@dataclass(frozen=True, slots=True)
class Lost:
    """A running domain whose process could not be told, with the error that a patch would be refused with."""

    guest: QemuGuest
    error: RefusedError


def is_qemu(name: str) -> bool:
    """Whether a program of this name is a QEMU system emulator."""
    return name.startswith("qemu-system-") or name in ("qemu-kvm", "qemu")


def needs_resume(domain: Domain) -> bool:
    """Whether the guest stands because a person or a program paused it (and not for a migration or an I/O error)."""
    try:
        info = domain.info()
    except NotFoundError:
        return False
    return info.state is DomainState.PAUSED and info.reason in ("user", "unknown")


def find_images(host: Host, stack: ExitStack) -> tuple[list[QemuImage], list[Lost]]:
    """The process of every running domain, its memory opened on `stack`, and the domains for which that failed.

    Raises:
        UnsupportedError: the host has no QEMU driver.
    """
    if host.driver != "QEMU":
        raise UnsupportedError(f"{host.uri} has no QEMU processes: its driver is {host.driver}")
    by_uuid: dict[str, list[Running]] = {}
    for process in running(is_qemu):
        by_uuid.setdefault(process.argument("-uuid").lower(), []).append(process)
    binaries: dict[tuple[int, ...], Binary] = {}
    images: list[QemuImage] = []
    lost: list[Lost] = []
    for domain in host.domains():
        try:
            state = domain.state()
        except NotFoundError:  # it has ended since it was listed
            continue
        if not state.active:
            continue
        guest = QemuGuest(domain, runs=state is DomainState.RUNNING)
        try:
            process = _only_one(host, domain, by_uuid.get(domain.uuid, []))
            check_at_rest(process, domain)
            image = QemuImage(process, guest, binary_of(process, binaries))
            stack.enter_context(image)
            image.check_build()
        except RefusedError as e:
            lost.append(Lost(guest, e))
        else:
            images.append(image)
    return images, lost


def find_guests(host: Host) -> list[QemuGuest]:
    """The guest of every active domain of a host, whatever its process.

    Raises:
        UnsupportedError: the host has no QEMU driver.
        ConflictError: another operation has one of them in hand.
    """
    if host.driver != "QEMU":
        raise UnsupportedError(f"{host.uri} has no QEMU processes: its driver is {host.driver}")
    found = []
    for domain in host.domains():
        try:
            state = domain.state()
            if state.active:
                _not_moving(domain)
                found.append(QemuGuest(domain, runs=state is DomainState.RUNNING))
        except NotFoundError:  # it has ended since it was listed
            continue
    return found


def check_at_rest(process: Running, domain: Domain) -> None:
    """Raise ConflictError if a debugger holds the process, or another operation its domain."""
    _not_held(process, domain)
    _not_moving(domain)


def load_bias(binary: Binary, own: list[Mapping], label: str) -> int:
    """How far above its link addresses a program was loaded, from the mappings of its own file.

    Raises:
        RefusedError: none of them holds its code.
    """
    for segment in binary.segments:
        for m in own:
            if segment.executable and "x" in m.permissions and m.offset <= segment.offset < m.offset + m.end - m.start:
                return m.start - m.offset + segment.offset - segment.address
    raise RefusedError(f"{label} does not have the code of its executable mapped")


def _only_one(host: Host, domain: Domain, found: list[Running]) -> Running:
    if not found:
        raise NotFoundError(
            f"the process of {domain.name} is not visible from here",
            hint=f"run vmkit on that host itself, as root (asked: {host.uri})",
        )
    if len(found) > 1:
        pids = ", ".join(str(r.id.pid) for r in found)
        raise ConflictError(
            f"{domain.name} has {len(found)} QEMU processes on this machine: {pids}",
            hint="if it is being migrated, wait for the end: vmkit jobs",
        )
    return found[0]


def _not_held(process: Running, domain: Domain) -> None:
    """A process that a debugger holds does not answer libvirt: pausing its guest would never return."""
    pid = process.id.pid
    if tracer := tracer_of(pid):
        raise ConflictError(
            f"the QEMU of {domain.name} (process {pid}) is being traced by process {tracer} already",
            hint=f"end the debugger first: ps -p {tracer}",
        )
    if thread_state(pid, pid) == "T":
        raise ConflictError(
            f"the QEMU of {domain.name} (process {pid}) is stopped by a signal", hint=f"let it go on: kill -CONT {pid}"
        )


def _not_moving(domain: Domain) -> None:
    info = domain.info()
    if info.state is DomainState.PAUSED and info.reason in _MOVING:
        raise ConflictError(f"{domain.name} is paused ({info.reason}): another operation works on it")
    if domain.job() is not None:
        raise ConflictError(f"a job (a migration, say) runs on {domain.name}", hint="wait for its end: vmkit jobs")


def binary_of(process: Running, cache: dict[tuple[int, ...], Binary]) -> Binary:
    """The headers of its executable, read once for all processes of one file."""
    try:
        info = os.stat(process.exe_file)  # noqa: PTH116 - Path.stat is the same; this one follows the magic link
    except OSError as e:
        raise NotFoundError(f"process {process.id.pid} has ended") from e
    key = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
    if key not in cache:
        cache[key] = read_binary(process.exe_file)
    return cache[key]
