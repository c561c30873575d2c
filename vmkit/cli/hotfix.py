"""`vmkit hotfix`."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmkit.cli import render
from vmkit.cli.context import Context
from vmkit.progress import Event, Note

if TYPE_CHECKING:
    from vmkit.hotfix.build.make import Changed

_SOURCE = click.argument("source", metavar="PATCHFILE|ID")
_KINDS = {
    "changed": "other instructions",
    "constants": "the same instructions with other numbers in them: line numbers of assertions, or a changed constant",
    "layout": "other offsets from pointers alone: members of a structure have moved, so none of these can be patched",
    "gone": "in the old build only: removed, renamed, inlined, or not told apart from others of the same form",
    "new": "in the new build only",
}
"""What became of a function (vmkit.hotfix.build.match.Kind), in words."""

_FILE = click.Path(path_type=Path)
_UNSIGNED = click.option("--allow-unsigned", is_flag=True, help="Take a patch that no trusted key has signed.")
_PAUSE = click.option(
    "--max-pause",
    type=click.FloatRange(1, 600_000),
    default=None,
    show_default="2000; 10000 for the kernel",
    metavar="MS",
    help="Give up, with nothing written, if the guests have stood for so many milliseconds.",
)
_HOSTS = click.option(
    "--host",
    "hosts",
    metavar="URI",
    multiple=True,
    help="Do it on this host, in place of that of -c. Repeatable: one after the other, up to the first failure.",
)
_PLAN = click.option("--plan", "only_plan", is_flag=True, help="Make every check, print the plan and stop.")


@click.group()
def hotfix() -> None:
    """Patch the code of running QEMU processes, or of the kernel's modules, and take it back.

    A patch concerns a whole host: every QEMU process of its running VMs is patched, or none; or its kernel, by a
    livepatch module, while its guests stand, until it boots again. The bytes of processes change in the
    memory of these processes alone. VMs that vmkit starts, or migrates to this machine, later are patched before they
    run; those that others start are patched where `watch` runs, and else not until `apply` is run again. On another
    host, given by a URI that leads through ssh, what does it is carried there, run, and removed; root is needed there.
    """


@hotfix.command()
@click.option("--old", type=_FILE, help="The executable that runs.")
@click.option("--new", type=_FILE, help="The build that it should do the same as.")
@click.option(
    "--function", "functions", metavar="NAME", multiple=True, help="With --old, --kernel: only this one. Repeatable."
)
@click.option("--out-of-line", is_flag=True, help="With --old: put new code elsewhere even where it would fit.")
@click.option("--binary", type=_FILE, help="The executable that runs, with --find and --replace.")
@click.option("--find", metavar="HEX", help="Bytes at one place of its code; ?? is any byte.")
@click.option("--replace", metavar="HEX", help="What goes there; at most as long.")
@click.option("--kernel", type=_FILE, metavar="SOURCE.c", help="C code that defines functions of a kernel module anew.")
@click.option("--module", metavar="NAME|FILE", help="With --kernel: the module that they are in, as in kvm.")
@click.option("--release", help="With --kernel: of the kernel, as uname -r prints it  [default: this machine's]")
@click.option("--root", type=_FILE, help="With --kernel: a system that has compiler, headers and module  [default: /]")
@click.option("--id", "patch_id", metavar="ID", help="Name of the patch [default: that of the file to write]")
@click.option("--title", help="One line that says what it is for.")
@click.option("--cve", default="", metavar="CVE-...", help="The CVE number that it mends.")
@click.option(
    "--context",
    type=click.IntRange(0, 1024),
    default=16,
    show_default=True,
    help="With --binary: bytes before and after that have to be there too.",
)
@click.option("-o", "--out", type=_FILE, help="File to write [default: standard output]")
@click.pass_obj
def make(
    obj: Context,
    old: Path | None,
    new: Path | None,
    functions: tuple[str, ...],
    out_of_line: bool,
    binary: Path | None,
    find: str | None,
    replace: str | None,
    kernel: Path | None,
    module: str | None,
    release: str | None,
    root: Path | None,
    patch_id: str | None,
    title: str | None,
    cve: str,
    context: int,
    out: Path | None,
) -> None:
    """Make a patch file from two builds of an executable, from bytes in one, or from C code for a kernel module.

    Executables are only read. C code is compiled by the kernel's own build system; it defines functions of the names
    and types of those that it replaces, and uses what the kernel's headers declare and its modules export.

    \b
    vmkit hotfix make --old qemu-running --new qemu-fixed --function edu_mmio_read -o edu.toml
    vmkit hotfix make --binary /usr/bin/qemu-system-x86_64 --find 'b8 ed 00 00 01' \\
        --replace 'b8 ed 00 00 02' -o edu-id.toml
    vmkit hotfix make --kernel cpuid.c --module kvm --function kvm_emulate_cpuid -o cpuid.toml
    """  # noqa: D301 - click's \b keeps the lines of the example
    patch_id = patch_id or (out.name.removesuffix(".toml") if out else None)
    if patch_id is None:
        raise click.UsageError("Missing option '--id', or '-o' with a file name to take it from.")
    hotfixes = obj.client().hotfixes
    other = old or new or binary or find or replace or out_of_line
    if kernel and module and functions and not other:
        made = hotfixes.make_for_kernel(
            kernel,
            module=module,
            functions=functions,
            id=patch_id,
            title=title,
            cve=cve,
            release=release,
            root=root or Path("/"),
            path=out,
        )
    elif kernel or module or release or root:
        raise click.UsageError("Give --kernel, --module and --function.")
    elif old and new and not (binary or find or replace):
        made = hotfixes.make_from_builds(
            old, new, id=patch_id, title=title, cve=cve, functions=functions, out_of_line=out_of_line, path=out
        )
    elif binary and find and replace and not (old or new or functions or out_of_line):
        made = hotfixes.make(
            binary, find=find, replace=replace, id=patch_id, title=title, cve=cve, context=context, path=out
        )
    else:
        raise click.UsageError(
            "Give either --old and --new, or --binary, --find and --replace, or --kernel, --module and --function."
        )
    for line in made.notes:
        render.note(line)
    if made.path is None:
        click.echo(made.text, nl=False)
    else:
        render.note(f"wrote {made.path}; sign it: vmkit hotfix sign {made.path} --key KEYFILE")


@hotfix.command()
@click.option("--old", type=_FILE, required=True, help="The older build.")
@click.option("--new", type=_FILE, required=True, help="The newer build.")
@click.option("--function", "functions", metavar="NAME", multiple=True, help="Only this one, side by side. Repeatable.")
@render.output_option
@click.pass_obj
def diff(obj: Context, old: Path, new: Path, functions: tuple[str, ...], output: str) -> None:
    """Show which functions of two builds differ in what they do. What merely lies elsewhere is not listed."""
    report = obj.client().hotfixes.diff(old, new, functions)
    if output == "name":
        click.echo("".join(f"{c.name}\n" for c in report.changed), nl=False)
    elif output != "table":
        render.emit(report, output=output)
    elif functions:
        for changed in report.changed:
            _side_by_side(changed)
    else:
        columns = [("FUNCTION", "name"), ("KIND", "kind"), ("FILE", "file"), ("WHY", "why")]
        render.emit(report.changed, output=output, columns=columns)
        counts = {k: sum(c.kind == k for c in report.changed) for k in _KINDS}
        for kind, count in counts.items():
            if count:
                render.note(f"{count} {kind}: {_KINDS[kind]}")
        told = "bounds and instructions, for want of symbols" if report.stripped else "symbol"
        render.note(f"{report.paired} functions paired by {told}; {report.same} do the same in both builds")


def _side_by_side(changed: Changed) -> None:
    click.echo(f"{changed.name}: {changed.why}")
    width = min(76, max((len(line.old) for line in changed.lines), default=0))
    for line in changed.lines:
        click.echo(f"{line.old[:width]:{width}} {line.mark} {line.new}".rstrip())


@hotfix.command()
@click.argument("name")
@click.option("--dir", "folder", type=_FILE, default=".", show_default="this folder", help="Where the files go.")
@click.option("--expires", type=click.DateTime(["%Y-%m-%d"]), help="Last day of the key, in UTC.")
@click.option("--trust", is_flag=True, help="Trust it on this machine at once.")
@render.output_option
@click.pass_obj
def keygen(obj: Context, name: str, folder: Path, expires: datetime | None, trust: bool, output: str) -> None:
    """Make a key to sign patches with: NAME.key, to be kept secret, and NAME.pub for machines that are to trust it."""
    pair = obj.client().hotfixes.keygen(name, folder, expires=expires.date() if expires else None, trust=trust)
    render.emit(pair, output=output, columns=[("NAME", "name")] if output == "name" else None)


@hotfix.command()
@click.argument("file", type=_FILE)
@click.option("--key", type=_FILE, required=True, help="The NAME.key that keygen made.")
@click.pass_obj
def sign(obj: Context, file: Path, key: Path) -> None:
    """Sign a patch file. A signature that it has is replaced."""
    obj.client().hotfixes.sign(file, key)
    render.note(f"signed {file}; see what it would do: vmkit hotfix check {file}")


@hotfix.command()
@click.argument("file", type=_FILE)
@render.output_option
@click.pass_obj
def verify(obj: Context, file: Path, output: str) -> None:
    """See which trusted key signed a patch file. Refused if none did."""
    found = obj.client().hotfixes.verify(file)
    render.emit(found, output=output, columns=[("KEY", "key")] if output == "name" else None)


@hotfix.command()
@_SOURCE
@_UNSIGNED
@render.output_option
@click.pass_obj
def check(obj: Context, source: str, allow_unsigned: bool, output: str) -> None:
    """See whether a patch can be applied here: builds, bytes, processes. Nothing is paused or written."""
    report = obj.client().hotfixes.check(source, allow_unsigned=allow_unsigned)
    if output == "table":
        render.show_plan(report.plan)
        render.note(f"{report.id}: {report.state}")
    else:
        render.emit(report, output=output, columns=[("ID", "id")] if output == "name" else None)


@hotfix.command()
@_SOURCE
@_HOSTS
@_PLAN
@_UNSIGNED
@_PAUSE
@render.output_option
@click.pass_obj
def apply(
    obj: Context,
    source: str,
    hosts: tuple[str, ...],
    only_plan: bool,
    allow_unsigned: bool,
    max_pause: float | None,
    output: str,
) -> None:
    """Patch every QEMU process of the host's running VMs, or its kernel. Guests are paused meanwhile."""
    _run(obj, "apply", source, hosts, max_pause, only_plan=only_plan, allow_unsigned=allow_unsigned, output=output)


@hotfix.command()
@_SOURCE
@_HOSTS
@_PLAN
@_PAUSE
@render.output_option
@click.pass_obj
def revert(
    obj: Context, source: str, hosts: tuple[str, ...], only_plan: bool, max_pause: float | None, output: str
) -> None:
    """Put back what a patch replaced, wherever it is applied on the host."""
    _run(obj, "revert", source, hosts, max_pause, only_plan=only_plan, allow_unsigned=False, output=output)


@hotfix.command()
@render.output_option
@click.pass_obj
def status(obj: Context, output: str) -> None:
    """Show which processes carry which patch, read from their memory, and which the kernel carries."""
    rows = obj.client().hotfixes.status()
    columns = [("PATCH", "id"), ("VM", "guest"), ("PID", "pid"), ("STATE", "state"), ("DETAIL", "detail")]
    render.emit(rows, output=output, columns=columns)


@hotfix.command()
@click.option("--unit", "only_unit", is_flag=True, help="Print a systemd unit that runs it, and stop.")
@click.pass_obj
def watch(obj: Context, only_unit: bool) -> None:
    """Patch VMs that others than vmkit start, as soon as libvirt tells of them; runs until SIGTERM or Ctrl-C.

    They run unpatched for a moment. Patches are those that were applied on this machine and not reverted; one retires
    when another build was installed and no process carries it any more.
    """
    if only_unit:
        from vmkit.hotfix.watch import unit

        click.echo(unit(Path(sys.argv[0]).resolve(), obj.uri), nl=False)
        return

    def say(event: Event) -> None:
        if isinstance(event, Note):
            render.note(event.text, warning=event.warning)

    render.note(f"ended by {obj.client().hotfixes.watch(say)}")


@hotfix.command("history")
@render.output_option
@click.pass_obj
def history_(obj: Context, output: str) -> None:
    """Show what was done on this machine, oldest first. Fails if a line is not as it was written."""
    events = obj.client().hotfixes.history()
    columns = [("#", "number"), ("TIME", "time"), ("UID", "uid"), ("WHAT", "what"), ("PATCH", "id")]
    render.emit(events, output=output, columns=[*columns, ("PROCESSES", "processes"), ("DETAIL", "detail")])
    if output == "table" and events:
        render.note(f"the newest hash, to be kept elsewhere: {events[-1].hash}")


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _on_each(
    obj: Context,
    action: str,
    source: str,
    hosts: tuple[str, ...],
    max_pause: float | None,
    *,
    only_plan: bool,
    allow_unsigned: bool,
    output: str,
) -> None:
    from vmkit.hotfix.plans import Action

    if obj.uri is not None:
        raise click.UsageError("Give either -c or --host.")
    each, way = obj.client().hotfix_hosts(hosts, allow_unsigned=allow_unsigned), Action(action)
    if only_plan:
        render.show_plan(each.plan(source, way), output)
        return
    with render.progress() as reporter:
        done = each.carry_out(way, source, max_pause=_seconds(max_pause), reporter=reporter)
    columns = [("HOST", "host"), ("STATE", "state"), ("VMS", "vms"), ("PAUSE MS", "pause_ms"), ("DETAIL", "detail")]
    render.emit(done, output=output, columns=columns if output != "name" else [("HOST", "host")])
    for one in done:
        if one.error is not None:
            raise one.error


def _run(
    obj: Context,
    action: str,
    source: str,
    hosts: tuple[str, ...],
    max_pause: float | None,
    *,
    only_plan: bool,
    allow_unsigned: bool,
    output: str,
) -> None:
    if hosts:
        options = {"only_plan": only_plan, "allow_unsigned": allow_unsigned}
        _on_each(obj, action, source, hosts, max_pause, output=output, **options)
        return
    hotfixes = obj.client().hotfixes
    if only_plan:
        from vmkit.hotfix.plans import Action

        render.show_plan(hotfixes.plan(source, Action(action), allow_unsigned=allow_unsigned), output)
        return
    with render.progress() as reporter:
        report = (
            hotfixes.apply(source, allow_unsigned=allow_unsigned, max_pause=_seconds(max_pause), reporter=reporter)
            if action == "apply"
            else hotfixes.revert(source, max_pause=_seconds(max_pause), reporter=reporter)
        )
    if output == "table":
        rows = [
            {
                "guest": p.guest,
                "pid": p.pid,
                "pause": None if p.pause_ms is None else round(p.pause_ms, 1),
                "writes": [f"{w.address}: {w.old} -> {w.new}" for w in p.writes],
            }
            for p in report.processes
        ]
        render.emit(rows, columns=[("VM", "guest"), ("PID", "pid"), ("PAUSE MS", "pause"), ("CHANGED", "writes")])
        render.note(f"{report.id}: {report.state}")
    else:
        render.emit(report, output=output, columns=[("ID", "id")] if output == "name" else None)
