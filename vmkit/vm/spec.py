"""What a user asks for: the spec of a VM, as YAML or as flags. Parsing is strict and names the path of the field."""

from __future__ import annotations

import difflib
import enum
import ipaddress
import re
from pathlib import Path
from typing import Any, Final

import msgspec

from vmkit.errors import SpecError
from vmkit.values import Bytes, check_mac, check_name, quoted

FILE_LIMIT: Final = 1 << 20
"""Largest spec file that is read, bytes."""


class Accel(enum.Enum):
    """How guest instructions are executed."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class Bus(enum.Enum):
    """How a disk is attached."""

    VIRTIO = "virtio"
    SCSI = "scsi"
    SATA = "sata"


class NicModel(enum.Enum):
    """Which network card the guest sees."""

    VIRTIO = "virtio"
    E1000 = "e1000"
    E1000E = "e1000e"


class DiskSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A disk. The first disk of a VM is an overlay of its image's disk unless it names another image.

    Attributes:
        size: virtual size; at least the image's, and that by default. Required for a disk without an image.
        image: image whose disk it overlays; '' for an empty disk.
        bus: how it is attached.
    """

    size: Bytes | None = None
    image: str | None = None
    bus: Bus = Bus.VIRTIO


class NicSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A network card.

    Attributes:
        network: 'auto', 'user' (QEMU's own NAT), 'none', 'bridge:NAME', or the name of a libvirt network.
        address: 'dhcp', 'none' or ADDRESS/PREFIX; given to guests that take it from the kernel command line.
        gateway: default route that goes with a fixed address.
        mac: MAC address; libvirt picks one if None.
        model: which card the guest sees.
    """

    network: str = "auto"
    address: str = "dhcp"
    gateway: str | None = None
    mac: str | None = None
    model: NicModel = NicModel.VIRTIO


class VmSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A virtual machine.

    Attributes:
        name: 1 to 63 letters, digits, '.', '_' or '-'.
        image: name of an image of the store; None boots from an empty disk.
        vcpus: 1 to 1024.
        memory: at least 16 MiB.
        accel: 'auto' takes KVM if a probe guest proves that it works, else TCG.
        cpu: 'auto', 'host', 'maximum', or a CPU model that the host's libvirt knows.
        machine: 'auto', or a machine type such as 'q35' or 'pc'.
        disks: empty means one overlay of the image's disk, where it has one.
        nics: default is one on the network 'auto'.
        cmdline: appended to the kernel command line of images that bring a kernel.
        qemu_args: further arguments for QEMU, as virt-install --qemu-commandline takes them.
        autostart: start with the host.
        labels: free text by name, kept in the domain's metadata.
    """

    name: str
    image: str | None = None
    vcpus: int = 1
    memory: Bytes = Bytes(256 << 20)
    accel: Accel = Accel.AUTO
    cpu: str = "auto"
    machine: str = "auto"
    disks: tuple[DiskSpec, ...] = ()
    nics: tuple[NicSpec, ...] = (NicSpec(),)
    cmdline: str = ""
    qemu_args: tuple[str, ...] = ()
    autostart: bool = False
    labels: dict[str, str] = {}


def parse(data: Any, *, at: str = "") -> VmSpec:
    """The spec in plain data (from YAML, JSON or keyword arguments).

    Args:
        data: a mapping.
        at: path of the mapping in its document, put before every path in an error.

    Raises:
        SpecError: a field is unknown, of the wrong type or out of range; says which.
    """
    if isinstance(data, VmSpec):
        return _checked(data, at)
    if not isinstance(data, dict):
        raise SpecError(f"a VM is a mapping, not {type(data).__name__}", path=at, hint="begin with 'name: web1'")
    try:
        spec = msgspec.convert(data, VmSpec, dec_hook=_decode, str_keys=True)
    except msgspec.ValidationError as e:
        raise _spec_error(str(e), at) from e
    return _checked(spec, at)


def load(path: Path | str) -> list[VmSpec]:
    """Every VM in a YAML file: one mapping a document, a list of them, or a mapping with the key 'vms'.

    '-' reads standard input.

    Raises:
        SpecError: the file cannot be read, is not YAML, or a field is wrong; says file, line or path.
    """
    import yaml

    text = _read(path)
    try:
        documents = [d for d in yaml.safe_load_all(text) if d is not None]
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(e, "problem", None) or str(e).splitlines()[0]
        raise SpecError(f"{path}{where}: not YAML: {problem}", hint="a VM begins with 'name: web1'") from e
    found: list[tuple[str, Any]] = []
    for number, document in enumerate(documents):
        at = f"[{number}]" if len(documents) > 1 else ""
        if isinstance(document, dict) and "vms" in document:
            if unknown := [k for k in document if k != "vms"]:
                raise SpecError(f"unknown field {quoted(str(unknown[0]))} beside 'vms'", path=at or str(path))
            document, at = document["vms"], f"{at}.vms".lstrip(".")
        if isinstance(document, list):
            found += [(f"{at}[{i}]", item) for i, item in enumerate(document)]
        else:
            found.append((at, document))
    if not found:
        raise SpecError(f"{path}: there is no VM in it", hint="a VM begins with 'name: web1'")
    specs = [parse(item, at=at) for at, item in found]
    for i, spec in enumerate(specs):
        if spec.name in {s.name for s in specs[:i]}:
            raise SpecError(f"'{spec.name}' is there twice", path=f"{found[i][0]}.name".lstrip("."))
    return specs


def dump(spec: VmSpec) -> dict[str, Any]:
    """The spec as plain data, defaults left out: what `parse` takes."""
    plain: dict[str, Any] = msgspec.to_builtins(spec, enc_hook=lambda v: int(v), str_keys=True)
    return plain


def _read(path: Path | str) -> str:
    import sys

    try:
        if str(path) == "-":
            text = sys.stdin.read(FILE_LIMIT + 1)
        else:
            with Path(path).open(encoding="utf-8") as f:
                text = f.read(FILE_LIMIT + 1)
    except OSError as e:
        raise SpecError(f"cannot read {quoted(str(path))}: {e.strerror}", hint="-f FILE names the YAML file") from e
    except UnicodeDecodeError as e:
        raise SpecError(f"{path}: not UTF-8 text at byte {e.start}") from e
    if len(text) > FILE_LIMIT:
        raise SpecError(f"{path}: larger than {Bytes(FILE_LIMIT)}")
    return text


def _decode(kind: type, value: Any) -> Any:
    if kind is Bytes:
        if not isinstance(value, str | int):
            raise ValueError(f"{value!r} is not a size (write it like 512M or 2G)")
        try:
            return Bytes.parse(value)
        except SpecError as e:
            raise ValueError(f"{e.message} ({e.hint})") from e
    raise NotImplementedError(kind)


def _spec_error(text: str, at: str) -> SpecError:
    match = re.fullmatch(r"(.*?)(?: - at `(?:key in )?\$(.*)`)?", text, re.DOTALL)
    message, path = (match[1], match[2] or "") if match else (text, "")
    path = f"{at}{path}".lstrip(".")
    if unknown := re.search(r"unknown field `(.*)`", message):
        kind = DiskSpec if "disks[" in path else NicSpec if "nics[" in path else VmSpec
        near = difflib.get_close_matches(unknown[1], kind.__struct_fields__, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known fields: {', '.join(kind.__struct_fields__)}"
        return SpecError("unknown field", path=f"{path}.{unknown[1]}".lstrip("."), hint=hint)
    return SpecError(message[:1].lower() + message[1:].replace("`", "'"), path=path)


def _checked(spec: VmSpec, at: str) -> VmSpec:
    def path(field: str) -> str:
        return f"{at}.{field}".lstrip(".")

    check_name(spec.name, path=path("name"))
    if spec.image is not None:
        check_name(spec.image, path=path("image"))
    if not 1 <= spec.vcpus <= 1024:
        raise SpecError(f"{spec.vcpus} is not between 1 and 1024", path=path("vcpus"))
    if not 16 << 20 <= spec.memory <= 1 << 50:
        raise SpecError(
            f"{spec.memory} is not between 16M and 1P", path=path("memory"), hint="write it like 512M or 2G"
        )
    for field in ("cpu", "machine"):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", getattr(spec, field)):
            raise SpecError(f"{quoted(getattr(spec, field))} cannot be right", path=path(field))
    for field in ("cmdline", "qemu_args"):
        _check_text(getattr(spec, field), path(field))
    for i, disk in enumerate(spec.disks):
        _check_disk(disk, path(f"disks[{i}]"), has_image=spec.image is not None and i == 0)
    for i, nic in enumerate(spec.nics):
        _check_nic(nic, path(f"nics[{i}]"))
    for key, value in spec.labels.items():
        check_name(key, path=path("labels"))
        _check_text(value, path(f"labels.{key}"))
    return spec


def _check_text(value: str | tuple[str, ...], path: str) -> None:
    for text in (value,) if isinstance(value, str) else value:
        if not text.isprintable():
            raise SpecError(f"{quoted(text)} has characters that cannot be printed", path=path)


def _check_disk(disk: DiskSpec, path: str, *, has_image: bool) -> None:
    if disk.image:
        check_name(disk.image, path=f"{path}.image")
    elif disk.size is None and not (has_image and disk.image is None):
        raise SpecError("an empty disk needs a size", path=f"{path}.size", hint="write it like 10G")
    if disk.size is not None and not 1 << 20 <= disk.size <= 1 << 50:
        raise SpecError(f"{disk.size} is not between 1M and 1P", path=f"{path}.size")


def _check_nic(nic: NicSpec, path: str) -> None:
    check_name(nic.network.removeprefix("bridge:"), path=f"{path}.network")
    if nic.mac is not None:
        check_mac(nic.mac, path=f"{path}.mac")
    if nic.address not in ("dhcp", "none"):
        try:
            ipaddress.ip_interface(nic.address)
        except ValueError as e:
            raise SpecError(str(e), path=f"{path}.address", hint="write it like 192.0.2.10/24, or dhcp") from e
        if "/" not in nic.address:
            raise SpecError(f"{nic.address} lacks its prefix", path=f"{path}.address", hint=f"{nic.address}/24")
    if nic.gateway is not None:
        try:
            ipaddress.ip_address(nic.gateway)
        except ValueError as e:
            raise SpecError(str(e), path=f"{path}.gateway", hint="write it like 192.0.2.1") from e
