"""Live patches of the running kernel: modules, symbols, memory and /sys/kernel/livepatch, all of them root's to see.

Documentation/ABI/testing/sysfs-kernel-livepatch says what is in the latter.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vmkit.errors import EffectError, NotFoundError, RefusedError

_FINIT_MODULE: Final = {"x86_64": 313}
_DELETE_MODULE: Final = {"x86_64": 176}
"""Numbers of system calls that the C library has no function for (arch/x86/entry/syscalls/syscall_64.tbl)."""
_PT_LOAD: Final = 1
_PHDR: Final = struct.Struct("<IIQQQQQQ")
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class PatchState:
    """A livepatch module.

    Attributes:
        loaded: the module is.
        enabled: the kernel uses it, or is on its way to.
        moving: some tasks do, and some do not yet.
    """

    loaded: bool
    enabled: bool = False
    moving: bool = False


class LiveKernel:
    """The kernel that runs here.

    Args:
        root: where /sys and /proc are, for tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._sys = root / "sys"
        self._proc = root / "proc"

    @property
    def release(self) -> str:
        """As `uname -r` prints it."""
        return (self._proc / "sys/kernel/osrelease").read_text().strip()

    def available(self) -> bool:
        """Whether it can be patched live at all (CONFIG_LIVEPATCH)."""
        return (self._sys / "kernel/livepatch").is_dir()

    def signed_only(self) -> str:
        """Why modules have to be signed by a key that it knows; '' if they need not be."""
        if _text(self._sys / "module/module/parameters/sig_enforce") == "Y":
            return "module.sig_enforce"
        mode = _text(self._sys / "kernel/security/lockdown")
        return "" if not mode or "[none]" in mode else f"lockdown ({mode.partition('[')[2].partition(']')[0]})"

    def notes(self, module: str) -> bytes | None:
        """The notes of a loaded module, as in its file; None if it is not loaded, b'' if it has none.

        Raises:
            RefusedError: they cannot be read.
        """
        folder = self._sys / "module" / module
        if not (folder / "initstate").exists():
            return None
        try:
            return (folder / "notes/.note.gnu.build-id").read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as e:
            raise RefusedError(f"the notes of {module} cannot be read: {e.strerror}", hint="run as root") from e

    def addresses(self, functions: Collection[str], module: str) -> dict[str, list[int]]:
        """Where functions of a module are, from /proc/kallsyms; it takes a second in an emulated machine.

        Raises:
            RefusedError: the kernel does not tell.
        """
        found: dict[str, list[int]] = {f: [] for f in functions}
        mark = f"\t[{module}]\n".encode()
        try:
            with (self._proc / "kallsyms").open("rb") as f:
                for line in f:
                    if line.endswith(mark):
                        address, kind, name = line[: -len(mark)].split()
                        if kind in b"tT" and name.decode() in found:
                            found[name.decode()].append(int(address, 16))
        except OSError as e:
            raise RefusedError(f"/proc/kallsyms cannot be read: {e.strerror}") from e
        if any(0 in places for places in found.values()):
            raise RefusedError("the kernel does not tell where its functions are", hint="run as root")
        return found

    def traceable(self, functions: Collection[str], module: str) -> set[str] | None:
        """Those functions of a module that ftrace can redirect; None if the kernel does not tell (no tracefs)."""
        wanted = {f"{f} [{module}]\n": f for f in functions}
        found = set()
        try:
            with (self._sys / "kernel/tracing/available_filter_functions").open() as f:
                for line in f:
                    if line in wanted:
                        found.add(wanted[line])
        except OSError:
            return None
        return found

    def memory(self, address: int, length: int) -> bytes:
        """Bytes of its memory, from /proc/kcore.

        Raises:
            RefusedError: it does not show them.
        """
        path = self._proc / "kcore"
        try:
            with path.open("rb", buffering=0) as f:
                head = f.read(64)
                start, size, count = *struct.unpack_from("<Q", head, 32), *struct.unpack_from("<HH", head, 54)
                f.seek(start)
                table = f.read(size * count)
                for i in range(count):
                    kind, _, offset, virtual, _, filled, _, _ = _PHDR.unpack_from(table, i * size)
                    if kind == _PT_LOAD and virtual <= address and address + length <= virtual + filled:
                        data = os.pread(f.fileno(), length, offset + address - virtual)
                        if len(data) == length:
                            return data
        except (OSError, struct.error) as e:
            raise RefusedError(f"{path} cannot be read: {e}", hint="run as root; lockdown forbids it too") from e
        raise RefusedError(f"{path} does not show {address:#x}")

    def patches_of(self, function: str, module: str) -> list[str]:
        """The livepatch modules that replace a function now."""
        found = (self._sys / "kernel/livepatch").glob(f"*/{module}/{function},*")
        return sorted({p.parents[1].name for p in found})

    def state(self, name: str) -> PatchState:
        """How a livepatch module stands."""
        folder = self._sys / "kernel/livepatch" / name
        loaded = (self._sys / "module" / name / "initstate").exists()
        enabled = _text(folder / "enabled")
        return PatchState(loaded, enabled == "1", _text(folder / "transition") == "1")

    def lagging(self, *, on: bool) -> list[str]:
        """The tasks that a way to (or from) a livepatch waits for, as 'NAME (task N)'; from /proc/PID/task/*."""
        behind = "0" if on else "1"
        return [
            f"{_text(path.with_name('comm')) or '?'} (task {path.parent.name})"
            for path in sorted(self._proc.glob("[0-9]*/task/*/patch_state"))
            if _text(path) == behind
        ]

    def enable(self, name: str, *, on: bool) -> None:
        """Have the kernel use it or not; the way there begins, or turns round.

        Raises:
            NotFoundError: it is not in use at all any more.
            EffectError: the kernel refused.
        """
        path = self._sys / "kernel/livepatch" / name / "enabled"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, b"1" if on else b"0")
            finally:
                os.close(fd)
        except FileNotFoundError as e:
            raise NotFoundError(
                f"the kernel uses no livepatch {name}", hint="see what it uses: ls /sys/kernel/livepatch"
            ) from e
        except OSError as e:
            raise EffectError(
                f"the kernel does not {'use' if on else 'give up'} the livepatch {name}: {e.strerror}"
            ) from e

    def load(self, name: str, data: bytes) -> None:
        """Load a module from memory; a livepatch begins to be used by that.

        Raises:
            EffectError: the kernel refused it.
        """
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(fd), "wb") as f:
                f.write(data)
            done = _libc.syscall(_call(_FINIT_MODULE), ctypes.c_int(fd), ctypes.c_char_p(b""), ctypes.c_int(0))
            if done != 0:
                reason = os.strerror(ctypes.get_errno())
                raise EffectError(f"the kernel does not take the module {name}: {reason}", hint="it says why: dmesg")
        finally:
            os.close(fd)

    def unload(self, name: str) -> bool:
        """Unload a module. False if the kernel does not let go of it yet; True also if it is not loaded.

        Raises:
            EffectError: the kernel refused.
        """
        done = _libc.syscall(_call(_DELETE_MODULE), ctypes.c_char_p(name.encode()), ctypes.c_int(os.O_NONBLOCK))
        error = 0 if done == 0 else ctypes.get_errno()
        if error in (0, 2):  # ENOENT
            return True
        if error in (11, 16):  # EAGAIN, EBUSY: something uses it
            return False
        raise EffectError(f"the kernel does not unload the module {name}: {os.strerror(error)}")


def _call(numbers: dict[str, int]) -> ctypes.c_long:
    machine = os.uname().machine
    if machine not in numbers:
        raise RefusedError(f"kernels of {machine} cannot be patched")
    return ctypes.c_long(numbers[machine])


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""
