"""The flags that describe a VM, and the spec that they make: what a file would have said. vmkit.vm.spec checks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from vmkit.errors import SpecError

Command = TypeVar("Command", bound=Callable[..., Any])

_AS_THEY_ARE: Final = (
    *("image", "family", "guest", "vcpus", "memory", "accel", "cpu", "machine", "numa", "hugepages", "locked"),
    *("balloon", "cmdline", "display", "max_vcpus", "max_memory"),
)
_WHOLE: Final = frozenset(
    [
        *("queues", "vlan", "max_tx_rate", "cpu_shares", "io_weight"),
        *("read_iops_sec", "write_iops_sec", "total_iops_sec"),
    ]
)
"""Fields that hold a whole number, wherever they are."""
_LISTS: Final = frozenset(["forward"])
"""Fields that hold a list: each time the key is given adds to it."""
_YES_NO: Final = frozenset(["iothread", "spoofcheck", "trust", "failover"])
_OPTIONS: Final = (
    click.option("--image", help="Image to boot, as vmkit image list names it."),
    click.option("--family", help="general, compute, memory, network or compat.  [default: general]"),
    click.option("--guest", help="linux, windows or other.  [default: linux]"),
    click.option("--vcpus", type=int, help="Virtual CPUs.  [default: 1]"),
    click.option("--memory", metavar="SIZE", help="Memory, as in 512M or 2G, or auto.  [default: auto]"),
    click.option("--max-vcpus", type=int, help="vCPUs that it can grow to while it runs."),
    click.option("--max-memory", metavar="SIZE", help="Memory that it can grow to while it runs."),
    click.option("--accel", help="auto, kvm or tcg.  [default: auto]"),
    click.option("--cpu", help="auto, host, maximum, emulated, or a CPU model.  [default: auto]"),
    click.option("--pin", "pins", multiple=True, metavar="CPUS", help="auto, none, or the CPUs of one vCPU. Repeat."),
    click.option("--numa", metavar="NODE", help="auto, none, or a NUMA node.  [default: auto]"),
    click.option("--hugepages", help="auto, none, 2M or 1G.  [default: auto]"),
    click.option("--locked/--no-locked", default=None, help="Keep its memory from being swapped."),
    click.option("--balloon/--no-balloon", default=None, help="Let the guest give memory back while it runs."),
    click.option("--machine", help="auto, q35, pc, ...  [default: auto]"),
    click.option(
        "--disk",
        "disks",
        multiple=True,
        metavar="SIZE[,KEY=VALUE]",
        help="A disk: size, image=, io=, bus=, source=, iothread=, queues=, limits.FIELD=. Repeat for more.",
    ),
    click.option(
        "--nic",
        "nics",
        multiple=True,
        metavar="NETWORK[,KEY=VALUE]",
        help="A NIC: network, address=, gateway=, mac=, forward=, io=, model=, vhost=, queues=, device=, pf=, vlan=, "
        "max_tx_rate=, spoofcheck=, trust=, failover=, limits.FIELD=. Repeat.",
    ),
    click.option("--device", "devices", multiple=True, metavar="ADDRESS", help="A PCI device of the host. Repeat."),
    click.option(
        "--limit",
        "limits",
        multiple=True,
        metavar="KEY=VALUE",
        help="cpu_shares=, cpu_quota=, memory= or io_weight=. Repeat.",
    ),
    click.option("--user-data", metavar="FILE", help="What cloud-init does at the first boot: cloud-config, a script."),
    click.option(
        "--ssh-key",
        "ssh_keys",
        multiple=True,
        metavar="FILE",
        help="Public key that lets in. Repeat.  [default: yours]",
    ),
    click.option("--user", metavar="NAME", help="Account to make in place of the image's default user."),
    click.option("--generate-password", is_flag=True, help="Give the user a password for the console; shown once."),
    click.option("--hostname", metavar="NAME", help="Host name in the guest.  [default: that of the VM]"),
    click.option("--network-config", metavar="FILE", help="cloud-init's network configuration, in place of --nic's."),
    click.option("--cmdline", help="Appended to the kernel command line."),
    click.option("--display", help="none, vnc or spice: a screen that vmkit display leads to.  [default: none]"),
    click.option(
        "--qemu-arg", "qemu_args", multiple=True, metavar="ARG", help="A further argument for QEMU. Repeat for more."
    ),
    click.option("--autostart", is_flag=True, help="Start it with the host."),
    click.option(
        "--label", "labels", multiple=True, metavar="KEY=VALUE", help="Free text kept with the VM. Repeat for more."
    ),
)
FLAGS: Final = frozenset(
    [
        *(*_AS_THEY_ARE, "pins", "disks", "nics", "devices", "limits", "qemu_args", "autostart", "labels"),
        *("user_data", "ssh_keys", "user", "generate_password", "hostname", "network_config"),
    ]
)
"""Names of the parameters that `spec_options` gives to a command."""


def spec_options(command: Command) -> Command:
    """Give a command every flag that describes a VM."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def spec_of(name: str, flags: dict[str, Any]) -> dict[str, Any]:
    """The spec as a file would have it."""
    spec: dict[str, Any] = {"name": name}
    for key in _AS_THEY_ARE:
        if flags[key] is not None:
            spec[key] = flags[key]
    if flags["pins"]:
        word = flags["pins"][0] if flags["pins"][0] in ("auto", "none") else None
        spec["pinning"] = word if word and len(flags["pins"]) == 1 else list(flags["pins"])
    if flags["disks"]:
        spec["disks"] = [_pairs(text, "size", f"--disk '{text}'") for text in flags["disks"]]
    if flags["nics"]:
        spec["nics"] = [_pairs(text, "network", f"--nic '{text}'") for text in flags["nics"]]
    if flags["devices"]:
        spec["devices"] = [{"address": text} for text in flags["devices"]]
    if flags["limits"]:
        spec["limits"] = _nested((_pair(text, "--limit") for text in flags["limits"]), "--limit")
    if cloud_init := _cloud_init(flags):
        spec["cloud_init"] = cloud_init
    if flags["qemu_args"]:
        spec["qemu_args"] = list(flags["qemu_args"])
    if flags["autostart"]:
        spec["autostart"] = True
    if flags["labels"]:
        spec["labels"] = dict(_pair(text, "--label") for text in flags["labels"])
    return spec


def _cloud_init(flags: dict[str, Any]) -> dict[str, Any]:
    files = {f"{key}_file": flags[key] for key in ("user_data", "network_config") if flags[key] is not None}
    plain = {key: flags[key] for key in ("user", "hostname") if flags[key] is not None}
    password = {"password": "generate"} if flags["generate_password"] else {}
    return {**files, **plain, **password, **({"ssh_keys": list(flags["ssh_keys"])} if flags["ssh_keys"] else {})}


def spec_of_disk(text: str) -> dict[str, Any]:
    """A disk as a file would have it, from what --disk takes."""
    return _pairs(text, "size", f"'{text}'")


def spec_of_nic(text: str) -> dict[str, Any]:
    """A NIC as a file would have it, from what --nic takes."""
    return _pairs(text, "network", f"'{text}'")


def _pairs(text: str, first: str, option: str) -> dict[str, Any]:
    parts = text.split(",")
    pairs = [(first, parts[0]) if i == 0 and "=" not in part else _pair(part, option) for i, part in enumerate(parts)]
    return _nested(pairs, option)


def _nested(pairs: Any, option: str) -> dict[str, Any]:
    """`limits.inbound=10M` as a mapping in the mapping."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        outer, dot, inner = key.partition(".")
        if key in _LISTS:
            found.setdefault(key, []).append(value)
        elif dot:
            found.setdefault(outer, {})[inner] = _typed(inner, value, option)
        else:
            found[key] = _typed(key, value, option)
    return found


def _typed(key: str, value: str, option: str) -> Any:
    """The text of a flag as the type that its field has."""
    if key in _WHOLE:
        if not (value.isascii() and value.isdecimal() and len(value) < 19):
            raise SpecError(f"{key} is a whole number, not '{value}'", path=option)
        return int(value)
    if key in _YES_NO:
        if value not in ("yes", "no", "on", "off", "true", "false"):
            raise SpecError(f"{key} is yes or no, not '{value}'", path=option)
        return value in ("yes", "on", "true")
    if key == "cpu_quota":
        try:
            return float(value)
        except ValueError:
            raise SpecError(f"{key} is a number of CPUs, not '{value}'", path=option, hint="like 1.5") from None
    return value


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise SpecError(f"'{text}' is not KEY=VALUE", path=option)
    return key, value
