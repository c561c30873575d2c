"""apply, diff, edit, set, rename, disk and nic: changing VMs that exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vmkit.cli.context import Context
from vmkit.cli.render import emit, note, output_option, progress, show_plan
from vmkit.errors import SpecError, VmkitError
from vmkit.values import parse_duration

if TYPE_CHECKING:
    from vmkit.vm.change.report import Applied, Difference, Options
    from vmkit.vm.change.shape import Have

Command = TypeVar("Command", bound=Callable[..., Any])

_COLUMNS = [("NAME", "name"), ("FIELD", "path"), ("FROM", "old"), ("TO", "new"), ("WHEN", "when"), ("BECAUSE", "why")]
_GOING = (
    click.option("--reboot", is_flag=True, help="Shut VMs down and start them, where a change takes effect then."),
    click.option("--recreate", is_flag=True, help="Make VMs anew where nothing else helps; data disks go over."),
    click.option("--delete-disks", is_flag=True, help="Delete the data of disks that go.  [default: it is kept]"),
    click.option("--deadline", default="90s", show_default=True, help="How long each wait for a guest may take."),
    click.option("--plan", is_flag=True, help="Print what would be done, and stop."),
)
_file = click.option("-f", "--file", "path", required=True, metavar="FILE", help="YAML file; - reads standard input.")
_vm = click.argument("name", metavar="NAME")


def going(command: Command) -> Command:
    """Options that say how far a change may go."""
    for option in reversed(_GOING):
        command = option(command)
    return command


@click.command()
@_file
@click.option("--wait/--no-wait", default=False, help="Return when every guest is ready.")
@click.option("--no-start", is_flag=True, help="Leave VMs that exist and are shut off as they are.")
@going
@output_option
@click.pass_obj
def apply(context: Context, /, path: str, *, wait: bool, no_start: bool, plan: bool, output: str, **far: Any) -> None:
    """Have the VMs and networks of a YAML file be as it says: made, changed, started. What is so already stays.

    What differs is shown first. A change takes effect at once where that is possible; what needs a reboot is put into
    the VM's definition and waits, or --reboot. A change that fails is set back. Data of disks that go is kept.
    """
    from vmkit.vm.spec import load_document

    document = load_document(path)
    changes = context.client().changes
    if plan:
        found = changes.diff(document)
        _show(found, output)
        if output == "table":
            new = {d.name for d in found if d.kind == "vm" and d.action == "create"}
            made_here = {n.name for n in document.networks}
            for spec in document.vms:
                if spec.name in new and not made_here & {n.network for n in spec.nics}:
                    with progress() as reporter:
                        shown = context.client().vms.plan(spec, reporter=reporter)
                    show_plan(shown, output)
        return
    options = _options(far, start=not no_start, wait=wait)
    tell = _tell if output == "table" else None
    with progress() as reporter:
        done = changes.apply(document, options=options, tell=tell, reporter=reporter)
    if output != "table":
        emit(done, output=output)
        return
    for one in done:
        _said(one)


@click.command()
@_file
@output_option
@click.pass_obj
def diff(context: Context, path: str, *, output: str) -> None:
    """Show in what VMs and networks differ from a YAML file, and when a change takes effect."""
    from vmkit.vm.spec import load_document

    _show(context.client().changes.diff(load_document(path)), output)


@click.command()
@_vm
@going
@click.pass_obj
def edit(context: Context, /, name: str, *, plan: bool, **far: Any) -> None:
    """Change the spec of a VM in an editor ($VISUAL, $EDITOR), and apply it."""
    import yaml

    changes = context.client().changes
    before = yaml.safe_dump(changes.spec(name), sort_keys=False, allow_unicode=True)
    text = click.edit(before, extension=".yaml", require_save=True)
    if text is None or text == before:
        click.echo(f"{name}: nothing was changed")
        return
    try:
        wanted = yaml.safe_load(text)
        if not isinstance(wanted, dict) or wanted.get("name") != name:
            raise SpecError("the name has to stay", path="name", hint=f"vmkit rename {name} NEW gives it another one")
        _change(context, name, lambda _plain, _have: wanted, plan, far)
    except yaml.YAMLError as e:
        raise SpecError(f"not YAML: {str(e).splitlines()[0]}", hint=_kept(text)) from e
    except VmkitError as e:
        e.details = (*e.details, _kept(text))
        raise


def _kept(text: str) -> str:
    """What somebody has written is not lost."""
    import os
    import tempfile

    fd, path = tempfile.mkstemp(prefix="vmkit-edit-", suffix=".yaml")
    with os.fdopen(fd, "w") as f:
        f.write(text)
    return f"what you wrote is in {path}; mended, vmkit apply -f {path} takes it"


@click.command(name="set")
@_vm
@click.option("--vcpus", type=int, help="Virtual CPUs.")
@click.option("--max-vcpus", type=int, help="vCPUs that it can grow to while it runs.")
@click.option("--memory", metavar="SIZE", help="Memory, as in 512M or 2G.")
@click.option("--max-memory", metavar="SIZE", help="Memory that it can grow to while it runs.")
@click.option("--autostart/--no-autostart", default=None, help="Start it with the host.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Free text; KEY= takes it away. Repeat.")
@going
@click.pass_obj
def set_(
    context: Context, /, name: str, *, labels: tuple[str, ...], plan: bool, autostart: bool | None, **values: Any
) -> None:
    """Change vCPUs, memory, autostart or labels of a VM: while it runs, where that is possible."""
    sizes = {k: values.pop(k) for k in ("vcpus", "max_vcpus", "memory", "max_memory")}
    given = {k: v for k, v in sizes.items() if v is not None}
    pairs = [text.partition("=") for text in labels]
    if wrong := next((text for text, pair in zip(labels, pairs, strict=True) if not pair[1]), None):
        raise SpecError(f"'{wrong}' is not KEY=VALUE", path="--label")
    if not given and autostart is None and not pairs:
        raise SpecError("nothing to set", hint="--vcpus, --memory, --autostart, ...; vmkit edit changes any field")

    def changed(plain: dict[str, Any], _have: Have) -> dict[str, Any]:
        new = {**plain, **given}
        if autostart is not None:
            new["autostart"] = autostart
        kept = {**plain.get("labels", {}), **{k: v for k, _, v in pairs}}
        new["labels"] = {k: v for k, v in kept.items() if v}
        return new

    _change(context, name, changed, plan, values)


@click.command()
@_vm
@click.argument("new", metavar="NEW")
@click.option("--restart", is_flag=True, help="If it runs: shut it down before, and start it after.")
@click.option("--deadline", default="90s", show_default=True, help="How long the guest has to shut down.")
@click.pass_obj
def rename(context: Context, name: str, new: str, *, restart: bool, deadline: str) -> None:
    """Give a VM that is shut off another name."""
    seconds = parse_duration(deadline, path="--deadline")
    said = context.client().changes.rename(name, new, restart=restart, deadline=seconds)
    click.echo(f"{name}: is {new} now; {said}")


@click.group()
def disk() -> None:
    """Add disks to VMs, take them away, make them larger: while they run."""


@disk.command(name="add")
@_vm
@click.argument("size", metavar="SIZE[,KEY=VALUE]")
@going
@click.pass_obj
def disk_add(context: Context, /, name: str, size: str, *, plan: bool, **far: Any) -> None:
    """Give a VM a new disk: 10G, or 10G,bus=scsi and so on as vmkit create --disk takes it."""
    from vmkit.cli.spec_flags import spec_of_disk

    new = spec_of_disk(size)

    def changed(plain: dict[str, Any], have: Have) -> dict[str, Any]:
        from vmkit.vm.change.find import disks_in

        return {**plain, "disks": [*disks_in(plain, have), new]}

    _change(context, name, changed, plan, far)


@disk.command(name="remove")
@_vm
@click.argument("device", metavar="DEVICE")
@going
@click.pass_obj
def disk_remove(context: Context, /, name: str, device: str, *, plan: bool, **far: Any) -> None:
    """Take a disk (vdb, ...) from a VM. Its data is kept unless --delete-disks says otherwise."""

    def changed(plain: dict[str, Any], have: Have) -> dict[str, Any]:
        from vmkit.vm.change.find import disks_in, find_disk

        number = find_disk(have, device)
        return {**plain, "disks": [d for i, d in enumerate(disks_in(plain, have)) if i != number]}

    _change(context, name, changed, plan, far)


@disk.command(name="grow")
@_vm
@click.argument("device", metavar="DEVICE")
@click.argument("size", metavar="SIZE")
@going
@click.pass_obj
def disk_grow(context: Context, /, name: str, device: str, size: str, *, plan: bool, **far: Any) -> None:
    """Make a disk (vda, ...) larger; the guest sees it at once. What is on it is left to the guest."""

    def changed(plain: dict[str, Any], have: Have) -> dict[str, Any]:
        from vmkit.vm.change.find import disks_in, find_disk

        number = find_disk(have, device)
        disks = [{**d, "size": size} if i == number else d for i, d in enumerate(disks_in(plain, have))]
        return {**plain, "disks": disks}

    _change(context, name, changed, plan, far)


@click.group()
def nic() -> None:
    """Add network cards to VMs and take them away: while they run."""


@nic.command(name="add")
@_vm
@click.argument("network", metavar="NETWORK[,KEY=VALUE]")
@going
@click.pass_obj
def nic_add(context: Context, /, name: str, network: str, *, plan: bool, **far: Any) -> None:
    """Give a VM a new network card, as vmkit create --nic takes it."""
    from vmkit.cli.spec_flags import spec_of_nic

    new = spec_of_nic(network)

    def changed(plain: dict[str, Any], _have: Have) -> dict[str, Any]:
        from vmkit.vm.change.find import nics_in

        return {**plain, "nics": [*nics_in(plain), new]}

    _change(context, name, changed, plan, far)


@nic.command(name="remove")
@_vm
@click.argument("which", metavar="NUMBER|MAC")
@going
@click.pass_obj
def nic_remove(context: Context, /, name: str, which: str, *, plan: bool, **far: Any) -> None:
    """Take a network card from a VM: by its number, the first is 0, or its MAC address."""

    def changed(plain: dict[str, Any], have: Have) -> dict[str, Any]:
        from vmkit.vm.change.find import find_nic, nics_in

        number = find_nic(have, which)
        return {**plain, "nics": [n for i, n in enumerate(nics_in(plain)) if i != number]}

    _change(context, name, changed, plan, far)


def _options(far: dict[str, Any], **more: Any) -> Options:
    from vmkit.vm.change.report import Options

    seconds = parse_duration(far.pop("deadline"), path="--deadline")
    return Options(**far, **more, deadline=seconds)


def _change(context: Context, name: str, edit: Any, plan: bool, far: dict[str, Any]) -> None:
    """Make a change of one VM, or show it."""
    from vmkit.vm.change.report import Difference

    options = _options(far, start=False)
    with progress() as reporter:
        done = context.client().changes.change(name, edit, options=options, plan=plan, reporter=reporter)
    if isinstance(done, Difference):
        _show([done], "table")
    else:
        _said(done)


def _tell(found: list[Difference]) -> None:
    if any(d.changes or d.warnings for d in found):
        _show([d for d in found if d.changes], "table")


def _show(found: list[Difference], output: str) -> None:
    if output != "table":
        emit(found, output=output)
        return
    rows: list[dict[str, str]] = []
    for one in found:
        for change in one.changes:
            row = {"path": change.path, "old": change.old, "new": change.new}
            rows.append({"name": one.name, **row, "when": change.effect, "why": change.reason})
        if not one.changes:
            rows.append({"name": one.name, "path": one.kind, "old": "-", "new": "-", "when": _when(one), "why": ""})
    emit(rows, output=output, columns=_COLUMNS)
    for one in found:
        if one.pending:
            note(f"{one.name}: changed earlier, needs reboot: {', '.join(one.pending)}", warning=True)
        for text in one.warnings:
            note(text, warning=True)


def _when(one: Difference) -> str:
    words = {"none": "nothing differs", "create": "is made", "start": "is started", "reboot": "needs reboot"}
    return words.get(one.action, one.action)


def _said(done: Applied) -> None:
    """One line about each, and what is left to do."""
    words = [done.action if done.kind == "vm" else f"network {done.action}"]
    words += [f"running under {done.accelerator}"] if done.accelerator else []
    words += [f"ready after {done.seconds:.1f} s"] if done.seconds is not None else []
    if done.changes and done.action == "changed":
        words.append(", ".join(f"{c.path} {c.old} -> {c.new}" for c in done.changes))
    click.echo(f"{done.name}: {', '.join(words)}")
    if done.password:
        click.echo(f"password: {done.password}  (it is kept nowhere: note it down)")
    if done.pending:
        note(
            f"{done.name}: needs reboot: {', '.join(done.pending)} (--reboot, or vmkit stop {done.name} and start)",
            warning=True,
        )
    for volume in done.kept:
        note(f"{done.name}: the volume {volume} is kept; nothing uses it")
    for volume in done.deleted:
        note(f"{done.name}: the volume {volume} was deleted")
