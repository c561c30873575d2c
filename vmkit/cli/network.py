"""vmkit network."""

from __future__ import annotations

from typing import Any

import click

from vmkit.cli.context import Context
from vmkit.cli.render import emit, note, output_option, progress, show_plan
from vmkit.errors import VmkitError


@click.group()
def network() -> None:
    """Networks that VMs join: NAT, isolated, or a bridge of the host.

    A network of mode nat or isolated hands out addresses, and its VMs find each other by name. A NIC on 'user' needs no
    network and no privileges: vmkit create --nic user,forward=2222:22 ...
    """


@network.command()
@click.argument("name")
@click.option("--mode", help="nat, isolated or bridge.  [default: nat]")
@click.option("--subnet", metavar="NETWORK", help="IPv4, as in 192.168.150.0/24, or auto.  [default: auto]")
@click.option("--dhcp", metavar="RANGE", help="FIRST-LAST, auto or none.  [default: auto: the upper half]")
@click.option("--domain", help="DNS domain of the VMs' names.  [default: the network's name]")
@click.option("--bridge", metavar="DEVICE", help="The bridge: one that is there (mode bridge), or how to call it.")
@click.option("--port", "ports", multiple=True, metavar="DEVICE", help="Interface that joins a new bridge. Repeat.")
@click.option("--autostart/--no-autostart", default=True, show_default=True, help="Start it with the host.")
@click.option("--plan", is_flag=True, help="Print what would be chosen and done, and stop.")
@output_option
@click.pass_obj
def create(context: Context, /, name: str, *, ports: tuple[str, ...], plan: bool, output: str, **flags: Any) -> None:
    """Make a network and start it."""
    spec = {"name": name, **{k: v for k, v in flags.items() if v is not None}}
    if ports:
        spec["ports"] = list(ports)
    networks = context.client().networks
    if plan:
        show_plan(networks.plan(spec), output)
        return
    with progress() as reporter:
        made = networks.create(spec, reporter=reporter)
    if output == "table":
        where = " on ".join(str(part) for part in (made.subnet, made.bridge) if part)
        click.echo(f"{name}: {made.mode}, {where}")
    else:
        emit(made, output=output)


@network.command(name="list")
@output_option
@click.pass_obj
def list_(context: Context, output: str) -> None:
    """List the networks of a host, whoever made them."""
    columns = [("NAME", "name"), ("MODE", "mode"), ("STATE", "state"), ("BRIDGE", "bridge"), ("SUBNET", "subnet")]
    emit(context.client().networks.list(), output=output, columns=[*columns, ("VMS", "vms"), ("VMKIT'S", "managed")])


@network.command()
@click.argument("name")
@output_option
@click.pass_obj
def show(context: Context, name: str, output: str) -> None:
    """Show one network: addresses given out and reserved, and the VMs on it."""
    emit(context.client().networks.show(name), output=output)


@network.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_obj
def start(context: Context, names: tuple[str, ...]) -> None:
    """Start networks that are inactive, and join the ports of their bridges."""
    for name in names:
        began = context.client().networks.start(name)
        click.echo(f"{name}: {'active' if began else 'is active already'}")


@network.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--force", is_flag=True, help="Also if VMs are on it, or another tool made it.")
@click.pass_obj
def delete(context: Context, names: tuple[str, ...], *, force: bool) -> None:
    """Stop networks and remove them."""
    failed: VmkitError | None = None
    for name in names:
        try:
            context.client().networks.delete(name, force=force)
            click.echo(f"{name}: removed")
        except VmkitError as e:
            if len(names) > 1:
                note(e.message + (f" ({e.hint})" if e.hint else ""), warning=True)
            failed = failed or e
    if failed is not None:
        raise failed


@network.command()
@click.argument("name")
@click.argument("vm")
@click.argument("address")
@click.option("--mac", help="MAC address.  [default: that of the VM's NIC on this network]")
@click.pass_obj
def reserve(context: Context, name: str, vm: str, address: str, mac: str | None) -> None:
    """Keep an address of a network for a VM, and have its name resolved there."""
    done = context.client().networks.reserve(name, vm, address, mac=mac)
    click.echo(f"{name}: {done.address} is kept for {done.name} ({done.mac})")


@network.command()
@click.argument("name")
@click.argument("which", metavar="VM|ADDRESS|MAC")
@click.pass_obj
def release(context: Context, name: str, which: str) -> None:
    """Take back what is reserved in a network."""
    for done in context.client().networks.release(name, which):
        click.echo(f"{name}: {done.address} is no longer kept for {done.name or done.mac}")
