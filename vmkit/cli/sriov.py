"""`vmkit sriov`: cards that make virtual functions of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmkit.cli.context import Context
from vmkit.cli.render import emit, output_option, progress

if TYPE_CHECKING:
    from vmkit.device.sriov import Pf

_COLUMNS = [
    ("NAME", "name"),
    ("ADDRESS", "address"),
    ("DRIVER", "driver"),
    ("VFS", "count"),
    ("MAC", "mac"),
    ("VLAN", "vlan"),
    ("MBIT/S", "max_tx_rate"),
    ("SPOOFCHECK", "spoofcheck"),
    ("TRUST", "trust"),
    ("USED BY", "used_by"),
]


@click.group()
def sriov() -> None:
    """See and set how many virtual functions the SR-IOV cards of a host have."""


@sriov.command(name="list")
@output_option
@click.pass_obj
def list_(context: Context, output: str) -> None:
    """List the cards with SR-IOV and their virtual functions, with what each card has set for them."""
    _show(context.client().sriov.list(), output)


@sriov.command(name="set")
@click.argument("pf", metavar="PF")
@click.argument("count", type=int, metavar="COUNT")
@click.option("--persist", is_flag=True, help="Also at each boot of the host; with 0: not any more.")
@output_option
@click.pass_obj
def set_(context: Context, pf: str, count: int, *, persist: bool, output: str) -> None:
    """Give the card PF (its interface, or its address) COUNT virtual functions.

    Refused while one of those that it has is in use. The number is lost when the host boots, unless --persist is given.
    """
    with progress() as reporter:
        done = context.client().sriov.set(pf, count, persist=persist, reporter=reporter)
    _show([done], output)


def _show(found: list[Pf], output: str) -> None:
    if output == "table":
        emit([row for pf in found for row in _rows(pf)], output=output, columns=_COLUMNS)
    else:
        emit(found, output=output, columns=_COLUMNS)


def _rows(pf: Pf) -> list[dict[str, Any]]:
    from vmkit.values import to_plain

    up = "" if pf.up else "is down"
    kept = f"; {pf.persistent} at each boot" if pf.persistent else ""
    head = {
        "name": pf.name,
        "address": pf.address,
        "driver": pf.driver,
        "count": f"{len(pf.vfs)} of {pf.total}{kept}",
        "used_by": up,
    }
    return [head, *({**to_plain(vf), "name": f"  vf {vf.number}", "count": ""} for vf in pf.vfs)]
