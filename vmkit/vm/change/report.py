"""What a change would do, what it did, and how far it may go. Values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One difference, for people and scripts: what, from what, to what, when it takes effect, and why then."""

    path: str
    old: str
    new: str
    effect: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """What has to be done about one VM or network.

    Attributes:
        name: of it.
        kind: 'vm' or 'network'.
        action: 'create', 'change', 're-create', 'start', 'reboot' (changed earlier, waits for it) or 'none'.
        changes: what differs.
        pending: fields that were changed earlier and wait for a reboot.
        warnings: what the user should know beforehand.
    """

    name: str
    kind: str
    action: str
    changes: tuple[Row, ...] = ()
    pending: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """What was done about one VM or network.

    Attributes:
        name, kind: as in Difference.
        action: 'created', 'changed', 're-created', 'started', 'rebooted' or 'unchanged'.
        changes: what was changed.
        pending: fields that take effect when the VM is shut down and started again.
        kept: volumes of disks that went; nobody uses them any more, and nothing deletes them.
        deleted: volumes that were deleted.
        accelerator, seconds, password: of a VM that was made or waited for.
    """

    name: str
    kind: str
    action: str
    changes: tuple[Row, ...] = ()
    pending: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    accelerator: str | None = None
    seconds: float | None = None
    password: str | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """How far a change may go.

    Attributes:
        reboot: shut VMs down and start them where that takes a change into effect.
        recreate: make VMs anew where nothing else helps. Disks without an image go over to the new VM.
        delete_disks: delete the volumes of disks that go.
        start: start VMs that are shut off.
        wait: for VMs that were made, started or rebooted.
        deadline: seconds for each wait.
    """

    reboot: bool = False
    recreate: bool = False
    delete_disks: bool = False
    start: bool = True
    wait: bool = False
    deadline: float = 90.0
