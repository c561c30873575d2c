"""As much of the module `libvirt` as hotfixes need, by ctypes, for hosts that have libvirt's C library alone.

Every host with a libvirtd has that library; its Python binding is a package of its own. Names, arguments and return
values are those of the binding, and the functions those of libvirt-domain.h and libvirt-host.h; the constants are
added where this is used (vmkit.hypervisor.standin).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, byref, c_char_p, c_int, c_uint, c_ulong, c_ulonglong, c_ushort, c_void_p
from typing import Any, Final

_LIBRARY: Final = "libvirt.so.0"


class libvirtError(Exception):  # noqa: N801 - the binding's name
    """What went wrong last in this thread."""

    def __init__(self, what: str) -> None:
        error = _library().virGetLastError()
        found = error.contents if error else None
        self._code = int(found.code) if found else 1
        self._domain = int(found.domain) if found else 0
        self._text = found.message.decode(errors="replace") if found and found.message else what
        super().__init__(self._text)

    def get_error_code(self) -> int:
        """A virErrorNumber."""
        return self._code

    def get_error_domain(self) -> int:
        """A virErrorDomain."""
        return self._domain

    def get_error_message(self) -> str:
        """In words."""
        return self._text


class _Error(ctypes.Structure):
    _fields_ = (("code", c_int), ("domain", c_int), ("message", c_char_p))  # the first members of virError


class _Info(ctypes.Structure):
    _fields_ = (
        ("state", ctypes.c_ubyte),
        ("max_memory", c_ulong),
        ("memory", c_ulong),
        ("vcpus", c_ushort),
        ("cpu_time", c_ulonglong),
    )


_HANDLER: Final = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
_quiet: Final = _HANDLER(lambda _data, _error: None)
_loaded: list[ctypes.CDLL] = []

_POINTERS: Final = ("virConnectOpen", "virDomainLookupByName", "virDomainLookupByUUIDString")
_TEXTS: Final = ("virConnectGetType", "virDomainGetName")


def _library() -> ctypes.CDLL:
    """Load it at the first use. Raises ImportError where it is not there."""
    if not _loaded:
        try:
            library = ctypes.CDLL(_LIBRARY)
        except OSError as e:
            raise ImportError(f"{_LIBRARY} is not on this host: {e}") from e
        for name in _POINTERS:
            getattr(library, name).restype = c_void_p
        for name in _TEXTS:
            getattr(library, name).restype = c_char_p
        library.virGetLastError.restype = POINTER(_Error)
        library.virSetErrorFunc(None, _quiet)  # else it prints every error to stderr
        _loaded.append(library)
    return _loaded[0]


def _call(name: str, *arguments: Any) -> Any:
    """Call it; -1 and NULL are errors."""
    found = getattr(_library(), name)(*arguments)
    if found is None or found == -1:
        raise libvirtError(f"{name} failed")
    return found


class virDomain:  # noqa: N801 - the binding's name
    """A domain."""

    def __init__(self, handle: int) -> None:
        self._handle = c_void_p(handle)

    def name(self) -> str:
        """Its name."""
        return str(_call("virDomainGetName", self._handle).decode())

    def UUIDString(self) -> str:  # noqa: N802
        """Its uuid."""
        buffer = ctypes.create_string_buffer(37)
        _call("virDomainGetUUIDString", self._handle, buffer)
        return buffer.value.decode()

    def state(self, flags: int = 0) -> list[int]:
        """State and reason."""
        state, reason = c_int(), c_int()
        _call("virDomainGetState", self._handle, byref(state), byref(reason), c_uint(flags))
        return [state.value, reason.value]

    def info(self) -> list[int]:
        """State, most memory and memory in KiB, vCPUs, CPU time in nanoseconds."""
        found = _Info()
        _call("virDomainGetInfo", self._handle, byref(found))
        return [found.state, found.max_memory, found.memory, found.vcpus, found.cpu_time]

    def suspend(self) -> int:
        """Pause it."""
        return int(_call("virDomainSuspend", self._handle))

    def resume(self) -> int:
        """Let it run."""
        return int(_call("virDomainResume", self._handle))

    def jobStats(self, flags: int = 0) -> dict[str, int]:  # noqa: N802
        """The type of its job, and nothing else of it."""
        kind, parameters, count = c_int(), c_void_p(), c_int()
        _call("virDomainGetJobStats", self._handle, byref(kind), byref(parameters), byref(count), c_uint(flags))
        _library().virTypedParamsFree(parameters, count)
        return {"type": kind.value}


class virConnect:  # noqa: N801 - the binding's name
    """A connection."""

    def __init__(self, handle: int) -> None:
        self._handle = c_void_p(handle)

    def close(self) -> int:
        """Close it."""
        return int(_call("virConnectClose", self._handle))

    def getType(self) -> str:  # noqa: N802
        """'QEMU', 'Xen', ..."""
        return str(_call("virConnectGetType", self._handle).decode())

    def listAllDomains(self, flags: int = 0) -> list[virDomain]:  # noqa: N802
        """Every domain."""
        found = POINTER(c_void_p)()
        count = _call("virConnectListAllDomains", self._handle, byref(found), c_uint(flags))
        return [virDomain(handle) for i in range(count) if (handle := found[i]) is not None]

    def lookupByName(self, name: str) -> virDomain:  # noqa: N802
        """The domain of this name."""
        return virDomain(_call("virDomainLookupByName", self._handle, name.encode()))

    def lookupByUUIDString(self, uuid: str) -> virDomain:  # noqa: N802
        """The domain with this uuid."""
        return virDomain(_call("virDomainLookupByUUIDString", self._handle, uuid.encode()))


def open(uri: str) -> virConnect:  # noqa: A001 - the binding's name
    """Open a connection."""
    return virConnect(_call("virConnectOpen", uri.encode()))


def registerErrorHandler(_handler: Callable[[Any, Any], None], _context: Any) -> None:  # noqa: N802
    """Errors are not printed anyway."""
