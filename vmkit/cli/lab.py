"""`vmkit lab`: throw-away hosts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmkit.cli.context import Context
from vmkit.cli.render import emit, output_option, progress
from vmkit.values import Bytes

if TYPE_CHECKING:
    from vmkit.lab.nested.options import HostOptions

_CACHED = [("NAME", "name"), ("SIZE", "size_text"), ("CREATED", "created"), ("USED BY", "used_by")]
_COLUMNS = [("NAME", "name"), ("KIND", "kind"), ("STATE", "state"), ("ADDRESS", "address"), ("URI", "uri")]


@click.group()
def lab() -> None:
    """Throw-away hosts to try things on."""


@lab.command()
@click.argument("kind", type=click.Choice(["pair", "kvm", "xen"]), default="pair")
@click.option("--name", metavar="NAME", help="Name of the lab; several can be up at a time.  [default: the kind]")
@click.option("--hosts", type=int, metavar="N", help="How many hosts.  [default: 2, at most 8; kvm, xen: 1, at most 4]")
@click.option("--sriov", is_flag=True, help="kvm: an SR-IOV network card with 7 virtual functions, and --iommu.")
@click.option("--iommu", is_flag=True, help="kvm: an IOMMU with interrupt remapping.")
@click.option("--hugepages", type=int, metavar="N", help="kvm: set N pages of 2 MiB aside.")
@click.option("--shadow", is_flag=True, help="kvm: no nested paging; KVM in the hosts uses shadow page tables.")
@click.option("--memory", metavar="SIZE", help="kvm, xen: memory of each host.  [default: 2752M; xen: 3G]")
@click.option(
    "--vcpus", type=int, metavar="N", help="kvm, xen: CPUs of each host.  [default: 2, or 1 on QEMU 7.2; xen: 1]"
)
@output_option
@click.pass_obj
def up(context: Context, /, kind: str, name: str | None, hosts: int | None, output: str, **hardware: Any) -> None:
    """Bring a lab up.

    pair: libvirt hosts on this machine, each in namespaces of its own; guests in them are emulated. Up in seconds.

    kvm: virtual machines that are KVM hosts themselves, with nested paging, huge pages, an IOMMU and SR-IOV, if asked
    for. Their Debian image is built once, by root, in some minutes; a host that has booted is kept, so the next one
    with the same hardware is up in seconds.

    xen: virtual machines that run Xen, with a dom0 that libvirt controls (xen+ssh). Emulated, and kept in the same way.

    Hosts share a network (lab) with DHCP and, if there are several, a storage pool (vmkit). Guests are moved between
    them with 'vmkit migrate', or with virsh and the URIs that are printed. A lab that is up already is left as it is.
    """
    with progress() as reporter:
        labs = context.client().labs
        made = labs.up(kind, name=name, hosts=hosts, reporter=reporter, options=_options(kind, hardware))
    emit(list(made.hosts), output=output, columns=_COLUMNS)


def _options(kind: str, hardware: dict[str, Any]) -> HostOptions | None:
    """The hardware that was named; None if none was."""
    given = {key: value for key, value in hardware.items() if value not in (None, False)}
    if not given:
        return None
    for name in given:
        if kind == "pair" or (kind == "xen" and name not in ("memory", "vcpus")):
            what = (
                "KVM hosts: vmkit lab up kvm" if name not in ("memory", "vcpus") else "hosts: vmkit lab up kvm, or xen"
            )
            raise click.UsageError(f"--{name} is for nested {what}")
    if "memory" in given:
        given["memory"] = Bytes.parse(given["memory"], path="--memory")
    if kind == "xen":
        from vmkit.lab.xen.options import XenOptions

        return XenOptions(**given)
    from vmkit.lab.kvm.options import KvmOptions

    return KvmOptions(**given)


@lab.command("list")
@click.option("--cache", is_flag=True, help="List what is kept to make labs fast, instead of hosts.")
@output_option
@click.pass_obj
def list_(context: Context, cache: bool, output: str) -> None:
    """List the hosts of every lab."""
    labs = context.client().labs
    if cache:
        emit(labs.cached(), output=output, columns=_CACHED)
    else:
        emit(labs.list(), output=output, columns=_COLUMNS)


@lab.command()
@click.option("--all", "everything", is_flag=True, help="Also what this version would use again.")
@output_option
@click.pass_obj
def prune(context: Context, everything: bool, output: str) -> None:
    """Remove what is kept to make labs fast and no lab stands on; print what was removed.

    Without --all only what an older version or other hardware left is removed: what the newest host image and the
    machines saved from it can still be used for stays.
    """
    with progress() as reporter:
        gone = context.client().labs.prune(everything=everything, reporter=reporter)
    emit(gone, output=output, columns=_CACHED)


@lab.group()
def image() -> None:
    """The images of nested hosts."""


@image.command()
@click.argument("kind", type=click.Choice(["kvm", "xen"]))
@output_option
@click.pass_obj
def build(context: Context, kind: str, output: str) -> None:
    """Build the image of nested hosts, if it is not there; print where its files are."""
    with progress() as reporter:
        made = context.client().labs.image(kind, reporter=reporter)
    emit(made, output=output)


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def exec_(context: Context, name: str, command: tuple[str, ...]) -> None:
    """Run a program in a lab host, as root: vmkit lab exec pair/h1 -- virsh list.

    NAME is LAB/HOST, or only HOST where that is clear. The terminal, the streams and the exit status are the program's
    own.
    """
    context.client().labs.exec(name, command[1:] if command[0] == "--" else command)


@lab.command()
@click.argument("name", required=False)
@click.option("--all", "everything", is_flag=True, help="Tear every lab down.")
@click.pass_obj
def down(context: Context, name: str | None, everything: bool) -> None:
    """Tear a lab down: its guests, processes, network and files."""
    if (name is None) == (not everything):
        raise click.UsageError("give the NAME of a lab, or --all")
    labs = context.client().labs
    with progress() as reporter:
        if name is None:
            labs.down_all(reporter)
        else:
            labs.down(name, reporter)
