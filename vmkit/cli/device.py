"""`vmkit device`: the PCI devices of a host, who uses them, and lending them to VMs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmkit.cli.context import Context
from vmkit.cli.render import emit, output_option, progress
from vmkit.values import parse_duration

if TYPE_CHECKING:
    from vmkit.device.api import Device


@click.group()
def device() -> None:
    """See the PCI devices of a host and who uses them; give them to VMs, and back."""


@device.command(name="list")
@output_option
@click.pass_obj
def list_(context: Context, output: str) -> None:
    """List the PCI devices of a host: IOMMU group, driver, who uses it. What was left behind is an orphan."""
    found = context.client().devices.list()
    columns = [
        ("ADDRESS", "address"),
        ("GROUP", "group"),
        ("DRIVER", "driver"),
        ("NAME", "shown"),
        ("USED BY", "used_by"),
    ]
    if output == "table":
        emit([{**_plain(d), "shown": _short(d)} for d in found], output=output, columns=columns)
    else:
        emit(found, output=output, columns=columns)


@device.command()
@click.argument("address")
@output_option
@click.pass_obj
def show(context: Context, address: str, output: str) -> None:
    """Show one PCI device in full."""
    emit(context.client().devices.show(address), output=output)


@device.command()
@click.argument("vm", metavar="VM")
@click.argument("device", metavar="DEVICE")
@click.option("--mac", help="MAC address of a virtual function.  [default: one that stays the same]")
@click.option("--vlan", type=int, help="VLAN that it is put into.")
@click.option("--max-tx-rate", type=int, metavar="MBIT", help="Mbit/s that it may send.")
@click.option("--spoofcheck/--no-spoofcheck", default=True, help="Drop what it sends from another MAC address.")
@click.option("--trust", is_flag=True, help="Let the guest change its MAC address and listen to everything.")
@click.option("--take-from-host", is_flag=True, help="Also if the host itself uses the device.")
@output_option
@click.pass_obj
def attach(context: Context, /, vm: str, device: str, output: str, *, take_from_host: bool, **network: Any) -> None:
    """Give a PCI device to a VM, at once if it runs, and at each start.

    DEVICE is an address as vmkit device list has it, `vf` for any virtual function that is free, or `vf:eth1` for one
    of that card.
    """
    from vmkit.device.attach import Network

    with progress() as reporter:
        done = context.client().devices.attach(
            vm, device, network=Network(**network), from_host=take_from_host, reporter=reporter
        )
    if output != "table":
        emit(done, output=output)
        return
    when = "now and at each start" if done.now and done.at_start else "now" if done.now else "at its next start"
    click.echo(f"{vm}: has {done.address} {when}" + (f", MAC address {done.mac}" if done.mac else ""))


@device.command()
@click.argument("vm", metavar="VM")
@click.argument("device", metavar="DEVICE")
@click.option("--deadline", default="60s", show_default=True, help="How long the guest has to let go of it.")
@click.pass_obj
def detach(context: Context, vm: str, device: str, *, deadline: str) -> None:
    """Take a PCI device from a VM and give it back to the host. DEVICE is its address, or the NIC's MAC address."""
    seconds = parse_duration(deadline, path="--deadline")
    done = context.client().devices.detach(vm, device, deadline=seconds)
    click.echo(f"{vm}: {done.address} is back on the host")


@device.command()
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...")
@click.option("--force", is_flag=True, help="Also what an operation on another machine claims.")
@click.pass_obj
def release(context: Context, addresses: tuple[str, ...], *, force: bool) -> None:
    """Give devices that were left behind back to the host, with their settings; without ADDRESS, all of them."""
    with progress() as reporter:
        lines = context.client().devices.release(addresses, force=force, reporter=reporter)
    for line in lines or ["nothing was left behind"]:
        click.echo(line)


def _plain(found: Device) -> dict[str, Any]:
    from vmkit.values import to_plain

    plain: dict[str, Any] = to_plain(found)
    return plain


def _short(found: Device) -> str:
    """The name as far as it fits beside the rest, and the interface."""
    name = found.name or f"{found.kind} {found.id}"
    name = name if len(name) <= 48 else f"{name[:45]}..."
    return f"{name} ({', '.join(found.nets)})" if found.nets else name
