"""What vmkit keeps about a VM in the domain's own <metadata>. Pure, and cheap to import: `vmkit list` reads it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final
from xml.etree import ElementTree as ET

NAMESPACE: Final = "urn:vmkit:vm:1"
"""Namespace of vmkit's own element."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who is let in by ssh: the account (None: only the guest knows its name), and the public keys that it takes."""

    user: str | None
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Remembered:
    """What vmkit keeps about a VM in the domain's <metadata>.

    Attributes:
        spec: what was asked for, as plain data.
        image: image of the first disk and of the kernel.
        volumes: disks that vmkit made, so that it may delete them.
        console_log: volume that holds what the guest wrote to its console.
        access: who is let in by ssh, where a seed said so.
    """

    spec: dict[str, Any]
    image: str | None
    volumes: tuple[str, ...]
    console_log: str | None
    access: Access | None = None


def to_text(remembered: Remembered) -> str:
    """The content of vmkit's element: JSON, since a spec has the same form."""
    body: dict[str, Any] = {
        "spec": remembered.spec,
        "image": remembered.image,
        "volumes": list(remembered.volumes),
        "console_log": remembered.console_log,
    }
    if remembered.access:
        body["access"] = {"user": remembered.access.user, "keys": list(remembered.access.keys)}
    return json.dumps(body, sort_keys=True)


def remembered_in(element: str) -> Remembered | None:
    """Read vmkit's element back; None where it is not one that this version wrote."""
    try:
        body = json.loads(ET.fromstring(element).text or "")  # noqa: S314 - libvirt's own answer
        access = Access(a["user"], tuple(a["keys"])) if (a := body.get("access")) else None
        return Remembered(body["spec"], body["image"], tuple(body["volumes"]), body["console_log"], access)
    except (ET.ParseError, ValueError, KeyError, TypeError, AttributeError):
        return None
