"""libvirt's errors in vmkit's words."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Final

import libvirt

from vmkit.errors import (
    CancelledError,
    ConflictError,
    EffectError,
    NotFoundError,
    RefusedError,
    SpecError,
    UnreachableError,
    UnsupportedError,
    VmkitError,
)
from vmkit.hypervisor.advice import advice

_NOT_FOUND = {
    libvirt.VIR_ERR_NO_DOMAIN,
    libvirt.VIR_ERR_NO_NETWORK,
    libvirt.VIR_ERR_NO_STORAGE_POOL,
    libvirt.VIR_ERR_NO_STORAGE_VOL,
    libvirt.VIR_ERR_NO_DOMAIN_METADATA,
    libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT,
    libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT,
}
_EXISTS = {libvirt.VIR_ERR_DOM_EXIST, libvirt.VIR_ERR_NETWORK_EXIST, libvirt.VIR_ERR_STORAGE_VOL_EXIST}
_UNSUPPORTED = {
    libvirt.VIR_ERR_NO_SUPPORT,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
}
_SEE: Final = {
    libvirt.VIR_ERR_NO_DOMAIN: "see what there is: vmkit list",
    libvirt.VIR_ERR_NO_NETWORK: "see what there is: vmkit network list",
    libvirt.VIR_ERR_NO_STORAGE_POOL: "see what there is: virsh pool-list --all",
    libvirt.VIR_ERR_NO_STORAGE_VOL: "another program may have removed it: virsh vol-list vmkit",
    libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT: "see what there is: vmkit snapshot list",
    libvirt.VIR_ERR_DOM_EXIST: "take another name; see what there is: vmkit list",
    libvirt.VIR_ERR_NETWORK_EXIST: "take another name; see what there is: vmkit network list",
    libvirt.VIR_ERR_STORAGE_VOL_EXIST: "see what there is: virsh vol-list vmkit",
}
"""The next step where what libvirt said has no advice of its own."""
_SPEC = {libvirt.VIR_ERR_XML_ERROR, libvirt.VIR_ERR_XML_DETAIL, libvirt.VIR_ERR_XML_INVALID_SCHEMA}
_UNREACHABLE = {libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_RPC}
CGROUP_ADVICE: Final = (
    "libvirtd has to run as root with cgroups: see cgroup_controllers in /etc/libvirt/qemu.conf, and vmkit doctor; "
    "limits of disks and NICs need none"
)
TC_ADVICE: Final = (
    "the host's kernel has to have what limits of NICs are made of: modprobe -a sch_htb sch_sfq sch_ingress cls_u32 "
    "cls_fw act_police"
)
FORWARD_ADVICE: Final = "a port of the host that is to be forwarded is in use there: ss -ltnup shows by whom"
FIREWALL_ADVICE: Final = (
    "the host needs a packet filter that libvirt can use: apt-get install iptables, and in /etc/libvirt/network.conf "
    'firewall_backend = "iptables"; a network of mode bridge needs none'
)
_NO_CGROUP = re.compile(
    r"(cgroup|tuning) is not available (on this host|in session)|cgroup .* controller is not mounted|"
    r"cgroup \w+ is required"
)
"""What libvirt's QEMU driver says where it has no cgroup controller (src/qemu/qemu_cgroup.c, qemu_driver.c)."""


def _quiet(_context: Any, _error: Any) -> None:
    """Libvirt prints every error to stderr unless told otherwise."""


libvirt.registerErrorHandler(_quiet, None)


def translate(error: libvirt.libvirtError, what: str) -> VmkitError:
    """The vmkit error for a libvirt error. `what` is the step that failed, as in 'start of web1'."""
    text = " ".join((error.get_error_message() or str(error)).split())
    found = _of_its_kind(error, text, f"{what}: {text}")
    if found.hint is None:
        found.hint = advice(text, what) or _SEE.get(error.get_error_code())
    if found.hint is None and isinstance(found, UnsupportedError):
        found.hint = "vmkit doctor shows the versions of libvirt and QEMU, and what they lack"
    return found


def _of_its_kind(error: libvirt.libvirtError, text: str, message: str) -> VmkitError:
    code = error.get_error_code()
    if code in _NOT_FOUND:
        return NotFoundError(message)
    if code in _EXISTS or (code == libvirt.VIR_ERR_OPERATION_FAILED and "already exists" in text):
        return ConflictError(message)
    if _NO_CGROUP.search(text):
        return UnsupportedError(message, hint=CGROUP_ADVICE)
    if code in _UNSUPPORTED or (code == libvirt.VIR_ERR_INVALID_ARG and text.startswith("unsupported flags")):
        return UnsupportedError(message)
    if code in _SPEC:
        return SpecError(message)
    if code in _UNREACHABLE or error.get_error_domain() == libvirt.VIR_FROM_RPC:
        return UnreachableError(message, hint="see that the host is up and its libvirtd runs")
    if code in (libvirt.VIR_ERR_OPERATION_DENIED, libvirt.VIR_ERR_ACCESS_DENIED):
        return RefusedError(message, hint="run as root, or as a member of the group libvirt")
    if code == libvirt.VIR_ERR_OPERATION_ABORTED:
        return CancelledError(message)
    if code in (libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_RESOURCE_BUSY):
        return ConflictError(message, hint="another operation works on it: vmkit jobs")
    if code == libvirt.VIR_ERR_OPERATION_INVALID:
        return ConflictError(message)
    if "Failed to apply firewall" in text or "firewall backend" in text:  # src/network, src/util/virfirewall.c
        return EffectError(message, hint=FIREWALL_ADVICE)
    if "Could not set up host forwarding rule" in text:  # QEMU's net/slirp.c
        return EffectError(message, hint=FORWARD_ADVICE)
    if "Child process (tc " in text:
        return EffectError(message, hint=TC_ADVICE)
    return EffectError(message)


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Let no libvirt error leave the block but as a VmkitError that says `what` failed."""
    try:
        yield
    except libvirt.libvirtError as e:
        raise translate(e, what) from e
