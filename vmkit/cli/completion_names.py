"""The names that completion offers: which parameter of which command names what, and what there is of that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vmkit.client import Client

Found = Iterable[tuple[str, str]]
"""Names, each with a word on it ('' for none)."""
Find = Callable[["Client", Mapping[str, Any]], Found]
"""Finds names. The mapping holds what the line has already, by the names of parameters."""


def _none(_client: Client, _line: Mapping[str, Any]) -> Found:
    return ()  # a name that is not there yet


def _vms(*states: str) -> Find:
    def found(client: Client, _line: Mapping[str, Any]) -> Found:
        return [(vm.name, vm.state) for vm in client.vms.list() if not states or vm.state in states]

    return found


def _images(client: Client, _line: Mapping[str, Any]) -> Found:
    return [(image.name, image.source) for image in client.images.list()]


def _networks(client: Client, _line: Mapping[str, Any]) -> Found:
    return [(name, "active" if on else "inactive") for name, on in client.host.network_names().items()]


def _for_nics(client: Client, line: Mapping[str, Any]) -> Found:
    return [*_networks(client, line), ("user", "QEMU's own NAT, without privileges"), ("none", "no network card")]


def _snapshots(client: Client, line: Mapping[str, Any]) -> Found:
    return [(snapshot.name, snapshot.created) for snapshot in client.snapshots.list(str(line.get("vm")))]


def _disks(client: Client, line: Mapping[str, Any]) -> Found:
    details = client.vms.get(str(line.get("name"))).details()
    return [(disk.device, disk.source or "") for disk in details.disks]


def _labs(client: Client, _line: Mapping[str, Any]) -> Found:
    return [(name, "") for name in dict.fromkeys(host.name.partition("/")[0] for host in client.labs.list())]


def _lab_hosts(client: Client, _line: Mapping[str, Any]) -> Found:
    return [(host.name, host.state) for host in client.labs.list()]


def _jobs(client: Client, _line: Mapping[str, Any]) -> Found:
    return [(job.id, f"{job.kind} of {job.subject}") for job in client.jobs.list()]


def _layers(_client: Client, _line: Mapping[str, Any]) -> Found:
    from vmkit.vm.readiness import Layer

    return [(f"{layer.value}:" if layer is Layer.PORT else layer.value, "") for layer in Layer]


_ANY: Final = _vms()
_RUNNING: Final = _vms("running")
_ACTIVE: Final = _vms("running", "paused", "crashed", "pmsuspended")
_OFF: Final = _vms("shut off", "crashed")

KINDS: Final[dict[str, Find]] = {
    "backup create vm": _RUNNING,
    "clone names": _none,
    "console name": _ACTIVE,
    "create name": _none,
    "disk device": _disks,
    "display name": _ACTIVE,
    "exec name": _RUNNING,
    "hotfix name": _none,
    "image name": _images,
    "image names": _images,
    "inventory only": _ANY,
    "ip name": _RUNNING,
    "jobs job_id": _jobs,
    "jobs what": _jobs,
    "lab exec name": _lab_hosts,
    "lab name": _labs,
    "migrate vm": _ACTIVE,
    "network create name": _none,
    "network name": _networks,
    "network names": _networks,
    "nic network": _for_nics,
    "pause names": _RUNNING,
    "reboot names": _ACTIVE,
    "restore names": _OFF,
    "resume names": _vms("paused"),
    "save names": _RUNNING,
    "screenshot name": _ACTIVE,
    "snapshot create name": _none,
    "snapshot name": _snapshots,
    "snapshot names": _snapshots,
    "ssh name": _RUNNING,
    "start names": _OFF,
    "stop names": _ACTIVE,
    "from_memory": _images,
    "goals": _layers,
    "image": _images,
    "name": _ANY,
    "names": _ANY,
    "nics": _for_nics,
    "vm": _ANY,
    "vms": _ANY,
}
"""What a parameter names: by its command and name, by its group and name, or by its name alone; the first counts."""
FILES: Final = frozenset(["image import source", "hotfix check source", "hotfix apply source"])
FOLDERS: Final = frozenset(["backup directory"])
