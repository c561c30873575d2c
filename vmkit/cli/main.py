"""The `vmkit` command. Commands are imported when they are used, so that `vmkit --help` costs no more than click."""

from __future__ import annotations

import importlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from vmkit.cli.context import Context
from vmkit.cli.program import interrupted
from vmkit.errors import SpecError, VmkitError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a command lives, and its line in the overview."""

    module: str
    attribute: str
    help: str
    host: bool = True  # whether it talks to a host, and so takes -c


COMMANDS: Final = {
    "apply": Entry("change", "apply", "Have VMs and networks be as a YAML file says."),
    "backup": Entry("backup", "backup", "Back up the disks of running VMs, and make VMs from backups."),
    "bench": Entry("bench", "bench", "Measure how fast guests are on a host."),
    "clone": Entry("clone", "clone", "Copy a VM, also while it runs: the copies go on from the same moment."),
    "completion": Entry(
        "completion", "completion", "Print what makes a shell complete commands and names.", host=False
    ),
    "console": Entry("console", "console", "Attach to the serial console of a VM."),
    "copy": Entry("reach", "copy", "Copy files into a VM, or out of it."),
    "create": Entry("vm", "create", "Create a VM from an image."),
    "delete": Entry("vm", "delete", "Delete VMs and the disks that vmkit made for them."),
    "device": Entry("device", "device", "PCI devices: who uses them; give them to VMs, and back."),
    "diff": Entry("change", "diff", "Show in what VMs and networks differ from a YAML file."),
    "disk": Entry("change", "disk", "Add disks to VMs, take them away, make them larger."),
    "display": Entry("display", "display", "Say where a VM's screen is looked at, by VNC or SPICE."),
    "doctor": Entry("doctor", "doctor", "Say what a host can do, what it lacks, and what mends that."),
    "edit": Entry("change", "edit", "Change the spec of a VM in an editor, and apply it."),
    "exec": Entry("reach", "exec_", "Run a program inside a VM."),
    "explain": Entry("explain", "explain", "Say how a VM is or would be virtualised, why, and at what cost."),
    "help": Entry("help", "help_", "Explain a topic or a command; list the topics.", host=False),
    "host": Entry("host", "host", "Empty a host of its VMs, or even several hosts out.", host=False),
    "hotfix": Entry("hotfix", "hotfix", "Patch the code of running QEMU processes, and take it back."),
    "image": Entry("image", "image", "Build, import, list and delete images.", host=False),
    "inventory": Entry("inventory", "inventory", "Print the VMs of a host as an inventory for Ansible."),
    "ip": Entry("wait", "ip", "Show the IP addresses of a VM, and who says so."),
    "jobs": Entry("jobs", "jobs", "See and cancel long operations, also from another terminal."),
    "lab": Entry("lab", "lab", "Throw-away hosts to try things on.", host=False),
    "limit": Entry("limit", "limit", "Show what a VM may take from its host, or change it while it runs."),
    "list": Entry("vm", "list_", "List the VMs of a host."),
    "log": Entry("console", "log", "Print what a VM wrote to its serial console."),
    "migrate": Entry("migrate", "migrate", "Move a VM to another host: while it runs, or shut off."),
    "network": Entry("network", "network", "Make, show and remove networks; reserve addresses in them."),
    "nic": Entry("change", "nic", "Add network cards to VMs and take them away."),
    "pause": Entry("vm", "pause", "Let the vCPUs of VMs stand still."),
    "reboot": Entry("vm", "reboot", "Reboot VMs."),
    "rename": Entry("change", "rename", "Give a VM another name."),
    "restore": Entry("snapshot", "restore", "Let VMs that were saved go on where they were."),
    "resume": Entry("vm", "resume", "Let paused VMs run again."),
    "save": Entry("snapshot", "save", "Write the memory of VMs to disk and end them."),
    "screenshot": Entry("display", "screenshot", "Write what a VM's screen shows to a PNG file."),
    "set": Entry("change", "set_", "Change vCPUs, memory, autostart or labels of a VM."),
    "show": Entry("vm", "show", "Show one VM in full."),
    "snapshot": Entry("snapshot", "snapshot", "Keep the state of a VM, with its memory, and go back to it."),
    "sriov": Entry("sriov", "sriov", "Cards with virtual functions: see them, set how many."),
    "ssh": Entry("reach", "ssh", "Log in to a VM by ssh, or run a program in it."),
    "start": Entry("vm", "start", "Start VMs that are shut off."),
    "stop": Entry("vm", "stop", "Shut VMs down."),
    "wait": Entry("wait", "wait", "Wait until a VM is ready: booted, address, agent, ssh, cloud-init, a port."),
}

_READING: Final = frozenset(["completion", "help"])
"""Commands about vmkit itself, which take nothing up."""


class LazyGroup(click.Group):
    """A group that imports a command's module when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Every command, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import the command; None if there is none of that name."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(importlib.import_module(f"vmkit.cli.{entry.module}"), entry.attribute)
        if entry.host:
            _accept_connect(command)
        if os.environ.get("_VMKIT_COMPLETE"):
            from vmkit.cli.completion import attach

            attach(command, cmd_name)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands, without importing them, and the options before a command."""
        from click.shell_completion import CompletionItem

        if incomplete.startswith("-"):
            return click.Command.shell_complete(self, ctx, incomplete)
        return [CompletionItem(n, help=COMMANDS[n].help) for n in self.list_commands(ctx) if n.startswith(incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The overview, without importing anything."""
        from vmkit.cli.sections import sections

        for title, names in sections(self.list_commands(ctx)).items():
            with formatter.section(title):
                # One column for all sections: the names of all commands are as long as the longest.
                formatter.write_dl([(f"{name:<10}", COMMANDS[name].help) for name in names])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a name that was mistyped."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=2, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            ctx.fail(f"No such command '{args[0]}'.{hint}")
        return super().resolve_command(ctx, args)


def _set_uri(ctx: click.Context, _param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.ensure_object(Context).uri = value


def _accept_connect(command: click.Command) -> None:
    """Let `vmkit list -c URI` mean the same as `vmkit -c URI list`."""
    if isinstance(command, click.Group):
        for sub in command.commands.values():
            _accept_connect(sub)
    if any("-c" in p.opts for p in command.params):
        return
    command.params.append(
        click.Option(
            ["-c", "--connect"],
            metavar="URI",
            expose_value=False,
            callback=_set_uri,
            help="Host to work on; the same as before the command.",
        )
    )


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="vmkit help lists topics that concern several commands. Exit codes: 0 done, 2 wrong input, 3 refused "
    "(nothing touched), 4 a step failed, 5 out of time, "
    "6 outcome unknown, 7 cancelled.",
)
@click.option(
    "-c",
    "--connect",
    metavar="URI",
    help="Host to work on [default: $VMKIT_CONNECT, $LIBVIRT_DEFAULT_URI, qemu:///system]",
)
@click.version_option(package_name="vmkit", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, connect: str | None) -> None:
    """Create, move and hot-fix virtual machines on KVM and Xen hosts."""
    from vmkit.cli.render import colour

    ctx.color = colour()
    ctx.obj = Context(connect)
    ctx.call_on_close(ctx.obj.close)
    if not {"-h", "--help"} & set(sys.argv) and ctx.invoked_subcommand not in _READING:
        _recover()


def _recover() -> None:
    """Take up what an earlier run left half-done when it was killed. One listing of a folder where there is nothing."""
    from vmkit.system.files import home

    # Looked at by hand: most runs find nothing there, and need not pay for the import of the journal.
    try:
        if not any(path.suffix == ".json" for path in (home() / "jobs").iterdir()):
            return
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    from vmkit.cli.render import note
    from vmkit.recovery import recover_all

    for line in recover_all():
        note(line, warning=True)


def fail(error: VmkitError) -> int:
    """Print an error the way every command does; return its exit code."""
    from vmkit.cli.render import colour, error_lines

    for line in error_lines(error):
        click.echo(line, err=True, color=colour())
    return error.exit_code


def _wrong_usage(error: click.ClickException) -> VmkitError:
    """What click says of a command line that is wrong, in the form of every other error."""
    text, near, names = " ".join(error.format_message().split()).partition(" Did you mean ")
    text = text.removesuffix(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f"see {context.command_path} --help" if context else None
    return SpecError(text[:1].lower() + text[1:], hint=f"did you mean {names}" if near else hint)


def main(argv: list[str] | None = None) -> None:
    """Read the command line and do what it says. Exits with the code that errors.py gives to each kind of error."""
    if os.environ.get("_VMKIT_COMPLETE"):  # a shell asks: see vmkit/cli/completion.py
        from vmkit.cli.completion import answer

        answer(cli)
        sys.exit(0)
    try:
        code = cli.main(args=argv, prog_name="vmkit", standalone_mode=False)
    except click.exceptions.Abort:
        code = interrupted()
    except click.ClickException as e:
        if type(e).__name__ == "NoArgsIsHelpError":  # since click 8.2: a group alone; its message is the help
            e.show()
            code = e.exit_code
        else:
            code = fail(_wrong_usage(e))
    except VmkitError as e:
        code = fail(e)
    except KeyboardInterrupt:
        code = interrupted()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as e:
        if isinstance(e, SystemError) and isinstance(e.__cause__, KeyboardInterrupt):
            sys.exit(interrupted())  # Ctrl-C during a call of libvirt's C code comes out as this
        if os.environ.get("VMKIT_DEBUG"):
            raise
        click.echo(f"error: internal error: {type(e).__name__}: {e}", err=True)
        click.echo("hint: set VMKIT_DEBUG=1 to see where", err=True)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)
