"""VMs as an inventory of Ansible's. Pure.

Formats: https://docs.ansible.com/ansible/latest/inventory_guide/intro_inventory.html (the YAML file) and
https://docs.ansible.com/ansible/latest/dev_guide/developing_inventory.html (what a script answers).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from vmkit.system.shell import SshWay

if TYPE_CHECKING:
    from vmkit.vm.overview import Overview

ROOT: Final = "vmkit"
"""The group that every VM is in."""
SSH: Final = 22
_WORD: Final = re.compile(r"[^A-Za-z0-9_]+")
_SAFE: Final = re.compile(r"[A-Za-z0-9_.:%@/+,-]+\Z", re.ASCII)


def group_name(*words: str) -> str:
    """A name that Ansible takes for a group: letters, digits and '_', and no digit first."""
    name = _WORD.sub("_", "_".join(words))
    return f"_{name}" if name[:1].isdigit() else name


def inventory(vms: Iterable[Overview], uri: str = "") -> dict[str, Any]:
    """The inventory, as a YAML file has it.

    Groups: `vmkit` with all of them, and below it `state_STATE`, `image_IMAGE` and `label_KEY_VALUE` for each label. A
    label `ansible_NAME` becomes the host's variable of that name.

    Args:
        vms: what there is.
        uri: of their host. If that is another machine behind ssh, VMs are reached through it.
    """
    hosts: dict[str, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for vm in vms:
        hosts[vm.name] = variables(vm, uri)
        names = [group_name("state", vm.state)]
        names += [group_name("image", vm.image)] if vm.image else []
        names += [group_name("label", k, str(v)) for k, v in vm.labels.items() if not k.startswith("ansible_")]
        for name in names:
            groups.setdefault(name, {"hosts": {}})["hosts"][vm.name] = {}
    body: dict[str, Any] = {"hosts": hosts}
    if groups:
        body["children"] = dict(sorted(groups.items()))
    return {ROOT: body}


def variables(vm: Overview, uri: str = "") -> dict[str, Any]:
    """What Ansible is told about one VM."""
    known: dict[str, Any] = {}
    if vm.entrance:
        known["ansible_host"], port = vm.entrance
        known |= {"ansible_port": port} if port != SSH else {}
    known |= {"ansible_user": vm.user} if vm.user else {}
    known |= {"ansible_ssh_private_key_file": vm.key} if vm.key else {}
    if jump := _jump(uri):
        known["ansible_ssh_common_args"] = jump
    known |= {k: v for k, v in vm.labels.items() if k.startswith("ansible_")}
    known |= {
        "vmkit_state": vm.state,
        "vmkit_addresses": list(vm.addresses),
        "vmkit_image": vm.image,
        "vmkit_vcpus": vm.vcpus,
        "vmkit_memory": vm.memory,
        "vmkit_uuid": vm.uuid,
        "vmkit_labels": vm.labels,
    }
    return known


def answer_list(found: dict[str, Any]) -> dict[str, Any]:
    """The same as a script answers to --list: `_meta` has all variables, so that no --host is asked."""
    body = found[ROOT]
    children = body.get("children", {})
    groups = {name: {"hosts": sorted(group["hosts"])} for name, group in children.items()}
    root: dict[str, Any] = {"hosts": sorted(body["hosts"])}
    if groups:
        root["children"] = sorted(groups)
    return {"_meta": {"hostvars": body["hosts"]}, "all": {"children": [ROOT]}, ROOT: root, **groups}


def _jump(uri: str) -> str | None:
    """Arguments that lead ssh through the VMs' host; None where they are reached from here, or cannot be."""
    try:
        way = SshWay.of(uri)
    except ValueError:
        return None
    if way is None:
        return None
    host = way.host
    words = [way.program, "-W", "%h:%p", "-q", *way.options(), *(["-l", way.user] if way.user else [])]
    if not all(_SAFE.match(w) for w in [*words, host]):
        return None  # what would need quotes in quotes is left to ~/.ssh/config
    return f"-o ProxyCommand='{' '.join([*words, host])}'"
