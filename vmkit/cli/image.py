"""`vmkit image`: the images of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vmkit.cli import render
from vmkit.cli.clone import from_vm
from vmkit.cli.context import Context
from vmkit.errors import SpecError
from vmkit.values import Bytes


@click.group()
def image() -> None:
    """Build, import, export, list and delete images.

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
    UDP port 7 echoes and UDP port 7007 answers with the counter. On a host without KVM the counter takes up to a tenth
    of a CPU: 'cmdline: vmkit.tick=1000' in the spec has it grow once a second.
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


image.add_command(from_vm)


@image.command("import")
@click.argument("source", metavar="FILE|URL|NAME")
@click.option("--name", help="What to call it.  [default: from the file's name]")
@click.option("--sha256", metavar="HEX", help="Digest that it has to have (128 digits: SHA-512).")
@click.option("--sums", metavar="FILE|URL", help="File of checksums that names it, as SHA256SUMS.")
@click.option("--signature", metavar="FILE|URL", help="Detached OpenPGP signature of --sums, as SHA256SUMS.gpg.")
@click.option("--keyring", metavar="FILE|URL", help="Keys, one of which has to have signed --sums.")
@click.option("--force", is_flag=True, help="Replace the image of that name. VMs made from it are not touched.")
@click.pass_obj
def import_(context: Context, /, *, source: str, **options: Any) -> None:
    """Bring in a disk image from a file or over http(s), an exported image, or one of the catalogue.

    Disk images are qcow2, raw, vdi, vhdx or vpc, also packed with gzip, xz or bzip2. Files that name other files (a
    backing file, say) are refused, since they could make any file of this machine visible in a guest.

    A download that was cut off goes on where it was when the command is run again. 'vmkit image catalogue' lists the
    names that it knows; for these, checksums and signature come by themselves.
    """
    with render.progress() as reporter:
        sums = options["sums"] or "http:"
        if (
            source.startswith("http://")
            and not options["sha256"]
            and not options["keyring"]
            and sums.startswith("http:")
        ):
            render.note("nothing proves that this is the right file: give its --sha256", warning=True)
        made = context.client().images.import_(source, reporter=reporter, **options)
    click.echo(f"imported {made.name}: {made.size}")


@image.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE.")
@click.pass_obj
def export(context: Context, /, *, name: str, file: Path, force: bool) -> None:
    """Write an image to a file.

    The suffix of FILE says how: .tar is the whole image with its kernel, for 'vmkit image import' elsewhere; .qcow2,
    .raw, .img, .vmdk and .vhdx are its disk alone.
    """
    with render.progress() as reporter:
        written = context.client().images.export(name, file, force=force, reporter=reporter)
    click.echo(f"exported {name}: {written}")


@image.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.pass_obj
def verify(context: Context, /, *, names: tuple[str, ...]) -> None:
    """Compare the files of images with the checksums that they had when they were made."""
    for name in names:
        with render.progress() as reporter:
            whole = context.client().images.verify(name, reporter)
        click.echo(f"{whole.name}: {len(whole.files)} files, {whole.size}, as they were made")


@image.command()
@render.output_option
@click.pass_obj
def catalogue(context: Context, /, *, output: str) -> None:
    """List the images that vmkit knows how to get, with their other names."""
    images = context.client().images
    here = {i.name for i in images.list()}
    rows = [
        {
            "name": k.name,
            "aliases": list(k.aliases) if output != "table" else " ".join(k.aliases),
            "here": k.name in here,
            "get": k.command,
            "about": k.about,
        }
        for k in images.known()
    ]
    columns = [("NAME", "name"), ("ALIASES", "aliases"), ("HERE", "here"), ("GET IT", "get"), ("ABOUT", "about")]
    render.emit(rows, output=output, columns=columns)


@image.command()
@click.argument("name", required=False)
@render.output_option
@click.pass_obj
def users(context: Context, /, *, name: str | None, output: str) -> None:
    """List which VMs of the host use which image."""
    client = context.client()
    found = client.images.uses(client.host, name)
    render.emit(found, output=output, columns=[("IMAGE", "image"), ("VM", "vm"), ("HOST", "host")])


@image.command()
@click.option("--host", "pool", is_flag=True, help="Also files in the host's pool that no VM there uses.")
@click.option("--unused", is_flag=True, help="Also images here that no VM of the host uses; with --host.")
@click.option("--plan", is_flag=True, help="Only say what would be removed.")
@render.output_option
@click.pass_obj
def prune(context: Context, /, *, pool: bool, unused: bool, plan: bool, output: str) -> None:
    """Remove what nobody needs: unfinished downloads, and what was left of images that were being made.

    With --host also the copies of images in the host's storage pool that no VM uses. They are put there again when a VM
    needs them.
    """
    if unused and not pool:
        raise SpecError("needs a host whose VMs count", path="--unused", hint="vmkit image prune --host --unused")
    client = context.client()
    host = client.host if pool else None
    with render.progress() as reporter:
        if plan:
            found = client.images.leftovers(host, unused=unused)
        else:
            found = client.images.prune(host, unused=unused, reporter=reporter)
    columns = [("KIND", "kind"), ("NAME", "name"), ("SIZE", "size_text"), ("WHERE", "where"), ("BECAUSE", "reason")]
    render.emit(found, output=output, columns=columns, wide=[])
    if output == "table":
        freed = Bytes(sum(e.size for e in found))
        render.note(f"{len(found)} things, {freed}, would go" if plan else f"{len(found)} things are gone, {freed}")


@image.command("list")
@render.output_option
@click.pass_obj
def list_(context: Context, /, *, output: str) -> None:
    """List the images."""
    with render.progress() as reporter:
        images = context.client().images.list(reporter)
    rows = [
        {
            "name": i.name,
            "kind": i.kind,
            "arch": i.arch,
            "size": str(i.size),
            "created": i.created,
            "source": i.source,
            "agent": i.agent,
            "cloud_init": i.cloud_init,
            "user": i.user,
        }
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
        click.echo(f"deleted {context.client().images.delete(name)}")
