"""What a user asks for: the spec of a VM, as YAML or as flags. Parsing is strict and names the path of the field."""

from __future__ import annotations

import difflib
import enum
import re
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from vmkit.errors import SpecError
from vmkit.network.spec import NetworkSpec
from vmkit.network.spec import parse as parse_network
from vmkit.values import Bytes, in_yaml_words, quoted, to_plain
from vmkit.vm.cloud_spec import CloudInitSpec, inlined, sealed
from vmkit.vm.spec_checks import check_vm
from vmkit.vm.spec_parts import (
    Accel,
    Bus,
    DeviceSpec,
    DiskIo,
    DiskLimits,
    DiskSpec,
    DisplayKind,
    Family,
    Guest,
    HugePages,
    LimitsSpec,
    NicIo,
    NicLimits,
    NicModel,
    NicSpec,
    Vhost,
)

__all__ = [
    "Accel",
    "Bus",
    "CloudInitSpec",
    "DeviceSpec",
    "DiskIo",
    "DiskLimits",
    "DiskSpec",
    "DisplayKind",
    "Document",
    "Family",
    "Guest",
    "HugePages",
    "LimitsSpec",
    "NetworkSpec",
    "NicIo",
    "NicLimits",
    "NicModel",
    "NicSpec",
    "Vhost",
    "VmSpec",
    "dump",
    "load",
    "load_document",
    "parse",
    "remembered_form",
]

FILE_LIMIT: Final = 1 << 20
"""Largest spec file that is read, bytes."""


class VmSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """A virtual machine.

    Attributes:
        name: 1 to 63 letters, digits, '.', '_' or '-'.
        image: name of an image of the store; None boots from an empty disk.
        family: what it is for; sets the defaults of the fields below that say 'auto' or are left out.
        guest: what runs in it; decides which para-virtual helpers it is offered.
        vcpus: 1 to 1024.
        max_vcpus: vCPUs that it can have while it runs; None is what the host has, up to 8, where they are not pinned.
        memory: at least 16 MiB; 'auto' (None) is what the image needs, or what the family gives.
        max_memory: memory that it can have while it runs; None is no more than `memory`.
        accel: 'auto' takes KVM if a probe guest proves that it works, else TCG.
        cpu: 'auto', 'host', 'maximum', 'emulated' (TCG), or a CPU model that the host's libvirt knows.
        pinning: 'none', 'auto' (cores of one NUMA node of their own), or a list of CPUs for each vCPU; None is what the
            family says.
        numa: 'auto', 'none', or the NUMA node that memory and vCPUs are taken from.
        hugepages: which pages of the host back its memory; 'auto' takes huge ones if the family says so and they are
            free.
        locked: keep its memory from being swapped or moved; None is what the family says.
        balloon: let the guest give memory back while it runs; None is yes, but for guests whose memory is pinned down.
        limits: what it may take from its host.
        devices: PCI devices of the host that are handed to it.
        machine: 'auto', or a machine type such as 'q35' or 'pc'; on Xen a mode: 'xenpvh', 'xenpv', 'xenfv'.
        disks: empty means one overlay of the image's disk, where it has one.
        nics: default is one on the network 'auto'.
        cloud_init: what cloud-init does at the first boot; None for its defaults where the image is known to have it.
        cmdline: appended to the kernel command line of images that bring a kernel.
        display: a screen with a graphics card, keyboard and pointer, which can be looked at by VNC or SPICE from the
            host itself (it listens on 127.0.0.1); 'none' leaves the serial console alone.
        qemu_args: further arguments for QEMU, as virt-install --qemu-commandline takes them.
        autostart: start with the host.
        labels: free text by name, kept in the domain's metadata.
    """

    name: str
    image: str | None = None
    family: Family = Family.GENERAL
    guest: Guest = Guest.LINUX
    vcpus: int = 1
    max_vcpus: int | None = None
    memory: Bytes | None = None
    max_memory: Bytes | None = None
    accel: Accel = Accel.AUTO
    cpu: str = "auto"
    pinning: tuple[str, ...] | str | None = None
    numa: int | str = "auto"
    hugepages: HugePages = HugePages.AUTO
    locked: bool | None = None
    balloon: bool | None = None
    limits: LimitsSpec = LimitsSpec()
    devices: tuple[DeviceSpec, ...] = ()
    machine: str = "auto"
    disks: tuple[DiskSpec, ...] = ()
    nics: tuple[NicSpec, ...] = (NicSpec(),)
    cloud_init: CloudInitSpec | None = None
    cmdline: str = ""
    display: DisplayKind = DisplayKind.NONE
    qemu_args: tuple[str, ...] = ()
    autostart: bool = False
    labels: dict[str, str] = {}

    @property
    def numa_node(self) -> int | None:
        """The NUMA node that was named; None for 'auto' and 'none'."""
        text = str(self.numa)
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else None


def parse(data: Any, *, at: str = "", base: Path | None = None) -> VmSpec:
    """The spec in plain data (from YAML, JSON or keyword arguments). Files that `cloud_init` names are read.

    Args:
        data: a mapping.
        at: path of the mapping in its document, put before every path in an error.
        base: folder that names of files start from; None is where the caller is.

    Raises:
        SpecError: a field is unknown, of the wrong type or out of range; says which.
    """
    if isinstance(data, VmSpec):
        check_vm(data, at)
        return data
    if not isinstance(data, dict):
        raise SpecError(f"a VM is a mapping, not {type(data).__name__}", path=at, hint="begin with 'name: web1'")
    if "cloud_init" in data:
        where = f"{at}.cloud_init".lstrip(".")
        data = {**data, "cloud_init": inlined(data["cloud_init"], base or Path(), where)}
    try:
        spec = msgspec.convert(_as_meant(data), VmSpec, dec_hook=_decode, str_keys=True)
    except msgspec.ValidationError as e:
        raise _spec_error(str(e), at) from e
    check_vm(spec, at)
    return spec


@dataclass(frozen=True, slots=True)
class Document:
    """What a spec file describes: networks, and VMs."""

    networks: tuple[NetworkSpec, ...]
    vms: tuple[VmSpec, ...]


def load(path: Path | str) -> list[VmSpec]:
    """Every VM in a YAML file: one mapping a document, a list of them, or a mapping with the key 'vms'.

    '-' reads standard input. Networks beside the VMs are checked and left out.

    Raises:
        SpecError: the file cannot be read, is not YAML, or a field is wrong; says file, line or path.
    """
    specs = list(load_document(path).vms)
    if not specs:
        raise SpecError(f"{path}: there is no VM in it", hint="a VM begins with 'name: web1'")
    return specs


def load_document(path: Path | str) -> Document:
    """Every VM and network in a YAML file: as `load`, with networks in a list under the key 'networks'.

    Raises:
        SpecError: the file cannot be read, is not YAML, a field is wrong, or there is nothing in it.
    """
    vms: list[tuple[str, Any]] = []
    networks: list[tuple[str, Any]] = []
    documents = _documents(path)
    for number, document in enumerate(documents):
        at = f"[{number}]" if len(documents) > 1 else ""
        if not isinstance(document, dict) or not {"vms", "networks"} & document.keys():
            vms += _items(document, at)
            continue
        if unknown := [k for k in document if k not in ("vms", "networks")]:
            raise SpecError(
                f"unknown field {quoted(str(unknown[0]))} beside 'vms' and 'networks'",
                path=at or str(path),
                hint="VMs are items of 'vms', networks of 'networks'",
            )
        vms += _items(document.get("vms") or [], f"{at}.vms".lstrip("."))
        networks += _items(document.get("networks") or [], f"{at}.networks".lstrip("."))
    if not vms and not networks:
        raise SpecError(f"{path}: there is no VM in it", hint="a VM begins with 'name: web1'")
    base = Path() if str(path) == "-" else Path(path).parent
    found = Document(
        tuple(parse_network(item, at=at) for at, item in networks),
        tuple(parse(item, at=at, base=base) for at, item in vms),
    )
    for specs, where in ((found.networks, networks), (found.vms, vms)):
        names = [s.name for s in specs]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise SpecError(f"'{name}' is there twice", path=f"{where[i][0]}.name".lstrip("."))
    return found


def _documents(path: Path | str) -> list[Any]:
    import yaml

    text = _read(path)
    try:
        return [d for d in yaml.safe_load_all(text) if d is not None]
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        where = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(e, "problem", None) or str(e).splitlines()[0]
        raise SpecError(f"{path}{where}: not YAML: {problem}", hint="a VM begins with 'name: web1'") from e


def _items(value: Any, at: str) -> list[tuple[str, Any]]:
    """Each item of a list with its path; a single mapping is its own."""
    return [(f"{at}[{i}]", item) for i, item in enumerate(value)] if isinstance(value, list) else [(at, value)]


def dump(spec: VmSpec) -> dict[str, Any]:
    """The spec as plain data, defaults left out: what `parse` takes."""
    # Lists where msgspec has tuples, so that it equals what comes back from JSON.
    plain: dict[str, Any] = to_plain(msgspec.to_builtins(spec, enc_hook=lambda v: int(v), str_keys=True))
    return plain


def remembered_form(spec: VmSpec) -> dict[str, Any]:
    """As `dump`, but fit for the domain's metadata, which others can read: secrets are replaced by their digest.

    Two specs that ask for the same have the same form. It parses; a VM cannot be made from what is sealed in it.
    """
    plain = dump(spec)
    if cloud_init := plain.get("cloud_init"):
        plain["cloud_init"] = sealed(cloud_init)
    return plain


def _as_meant(data: dict[Any, Any]) -> dict[Any, Any]:
    """Text that YAML takes for something else: to it `vhost: on` is a boolean, and `pinning: [2]` a number."""
    plain = dict(data)
    if plain.get("memory") == "auto":
        del plain["memory"]
    if isinstance(pins := plain.get("pinning"), list | tuple):
        plain["pinning"] = [str(p) if isinstance(p, int) and not isinstance(p, bool) else p for p in pins]
    if isinstance(nics := plain.get("nics"), list | tuple):
        words = {True: "on", False: "off"}
        plain["nics"] = [
            {**n, "vhost": words[n["vhost"]]} if isinstance(n, dict) and isinstance(n.get("vhost"), bool) else n
            for n in nics
        ]
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
        raise SpecError(
            f"{path}: not UTF-8 text at byte {e.start}", hint="-f FILE names a YAML file, which is text"
        ) from e
    if len(text) > FILE_LIMIT:
        raise SpecError(
            f"{path}: larger than {Bytes(FILE_LIMIT)}",
            hint="-f FILE names a YAML file; several smaller ones can be applied one after another",
        )
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
    if unknown := re.search(r"unknown field `(.*)`", message, re.DOTALL):
        kind = _kind_at(path, at)
        fields = kind.__struct_fields__ if hasattr(kind, "__struct_fields__") else VmSpec.__struct_fields__
        near = difflib.get_close_matches(unknown[1], fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known fields: {', '.join(fields)}"
        return SpecError("unknown field", path=f"{path}.{unknown[1]}".lstrip("."), hint=hint)
    if wrong := re.search(r"[Ii]nvalid enum value '(.*)'", message, re.DOTALL):
        kind = _kind_at(path, at)
        values = _values(kind)
        near = difflib.get_close_matches(wrong[1].lower(), values, n=1, cutoff=0.5)
        known = f"one of {', '.join(values)}" if values else None
        return SpecError(
            f"invalid enum value {quoted(wrong[1])}", path=path, hint=f"did you mean {near[0]}?" if near else known
        )
    return SpecError(in_yaml_words(message), path=path)


def _values(kind: Any) -> list[str]:
    members: list[Any] = list(kind) if isinstance(kind, enum.EnumType) else []
    return [str(m.value) for m in members]


def _kind_at(path: str, at: str) -> Any:
    """The struct or enum that a path such as `disks[1].bus` leads to; None if it leads nowhere."""
    kind: Any = VmSpec
    for name in re.findall(r"[A-Za-z_]+", path.removeprefix(at)):
        kind = _inner(typing.get_type_hints(kind).get(name)) if hasattr(kind, "__struct_fields__") else None
    return kind


def _inner(kind: Any) -> Any:
    """X of `X | None` and of `tuple[X, ...]`."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) in (tuple, typing.Union):
        return next((a for a in typing.get_args(kind) if a not in (type(None), Ellipsis)), None)
    return kind
