"""`vmkit image`: the images of this machine."""

from __future__ import annotations

import click

from vmkit.cli import render
from vmkit.cli.clone import from_vm
from vmkit.cli.context import Context


@click.group()
def image() -> None:
    """Build, import, list and delete images.

    An image is what VMs are made from. Images are kept on this machine, and copied to a host when a VM there first
    needs them.
    """


@image.group()
def build() -> None:
    """Build an image here."""


@build.command()
@click.option("--name", help="What to call it.  [default: micro, or micro-generic with that kernel]")
@click.option(
    "--kernel",
    type=click.Choice(["cloud", "generic"]),
    default="cloud",
    show_default=True,
    help="cloud: virtio devices alone; generic: emulated and real devices too.",
)
@click.option("--force", is_flag=True, help="Replace the image of that name. VMs made from it are not touched.")
@click.pass_obj
def micro(context: Context, /, *, name: str | None, kernel: str, force: bool) -> None:
    """Build the micro guest: a Linux that is up in seconds, for tests and demonstrations.

    Made of a kernel of Debian's, busybox and the QEMU guest agent, which are downloaded with apt and not installed.
    In the guest, 'counter' prints a number that grows by one every 10 ms, 'dirty SIZE [RATE]' keeps writing to memory,
    UDP port 7 echoes and UDP port 7007 answers with the counter.
    """
    with render.progress() as reporter:
        made = context.client().images.build_micro(name, kernel=kernel, force=force, reporter=reporter)
    click.echo(f"built {made.name}: {made.size} from {made.source}")


@build.command()
@click.option(
    "--release", type=click.Choice(["13", "12"]), default="13", show_default=True, help="Which release of Debian."
)
@click.option("--name", help="What to call it.  [default: debian-13 or debian-12]")
@click.option("--force", is_flag=True, help="Replace the image of that name. VMs made from it are not touched.")
@click.pass_obj
def debian(context: Context, /, *, release: str, name: str | None, force: bool) -> None:
    """Build a Debian for everyday use, with mmdebstrap; only root can.

    It has cloud-init, the QEMU guest agent, an ssh server and a log-in on the serial console. Nobody can log in before
    a key or a password is given to the VM. It boots its kernel directly; a newer kernel comes with a new build.
    'debian' and 'debian:13' mean debian-13, 'debian:12' means debian-12.
    """
    with render.progress() as reporter:
        made = context.client().images.build_debian(release, name, force=force, reporter=reporter)
    click.echo(f"built {made.name}: {made.size} from {made.source}")


@build.command()
@click.option("--name", default="bench", show_default=True, help="What to call it.")
@click.option("--force", is_flag=True, help="Replace the image of that name. VMs made from it are not touched.")
@click.pass_obj
def bench(context: Context, /, *, name: str, force: bool) -> None:
    """Build the guest of 'vmkit bench host': the micro guest with the programs that measure.

    The generic kernel, and on the disk stress-ng, sysbench, fio and iperf3 with their libraries, from Debian packages
    that are downloaded and not installed (120 MB).
    """
    with render.progress() as reporter:
        made = context.client().images.build_bench(name, force=force, reporter=reporter)
    click.echo(f"built {made.name}: {made.size} from {made.source}")


@image.command("import")
@click.argument("source", metavar="FILE|URL")
@click.option("--name", required=True, help="What to call it.")
@click.option("--sha256", metavar="HEX", help="Digest that FILE or URL has to have.")
@click.pass_obj
def import_(context: Context, /, *, source: str, name: str, sha256: str | None) -> None:
    """Bring in a disk image, qcow2 or raw, from a file or over http(s).

    Files that name other files (a backing file, say) are refused, since they could make any file of this machine
    visible in a guest.
    """
    with render.progress() as reporter:
        if sha256 is None and source.startswith("http://"):
            render.note("nothing proves that this is the right file: give its --sha256", warning=True)
        made = context.client().images.import_(source, name, sha256=sha256, reporter=reporter)
    click.echo(f"imported {made.name}: {made.size}")


image.add_command(from_vm)


@image.command("list")
@render.output_option
@click.pass_obj
def list_(context: Context, /, *, output: str) -> None:
    """List the images."""
    with render.progress() as reporter:
        images = context.client().images.list(reporter)
    rows = [
        {"name": i.name, "kind": i.kind, "arch": i.arch, "size": str(i.size), "created": i.created, "source": i.source}
        for i in images
    ]
    columns = [(k.upper(), k) for k in ("name", "kind", "arch", "size", "created", "source")]
    render.emit(rows if output == "table" else images, output=output, columns=columns)


@image.command()
@click.argument("name")
@render.output_option
@click.pass_obj
def show(context: Context, /, *, name: str, output: str) -> None:
    """Show one image in full."""
    render.emit(context.client().images.get(name), output=output)


@image.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.pass_obj
def delete(context: Context, /, *, names: tuple[str, ...]) -> None:
    """Delete images. VMs made from them keep working."""
    for name in names:
        context.client().images.delete(name)
        click.echo(f"deleted {name}")
