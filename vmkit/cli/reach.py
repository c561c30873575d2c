"""ssh, exec and copy: getting into a guest."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from vmkit.cli.context import Context
from vmkit.cli.render import emit, output_option, progress
from vmkit.values import Bytes, parse_duration, to_plain

_by = click.option(
    "--by",
    type=click.Choice(["auto", "agent", "ssh"]),
    default="auto",
    show_default=True,
    help="The guest agent (as root), or ssh; auto is the agent where one answers.",
)
_user = click.option("-u", "--user", metavar="NAME", help="Log in by ssh as this user.")


class Tail(click.Command):
    """A command whose options end where the program to run begins: in `vmkit exec web1 ls -i` the -i belongs to ls."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `--` before the second word that is no option, and go on as usual."""
        options = [p for p in self.params if isinstance(p, click.Option)]
        valued = {word for option in options if not option.is_flag for word in option.opts}
        words, i = 0, 0
        while i < len(args) and args[i] != "--":
            if args[i].startswith("-") and args[i] != "-":
                i += 2 if args[i] in valued else 1
                continue
            words += 1
            if words == 2:
                args = [*args[:i], "--", *args[i:]]
                break
            i += 1
        return super().parse_args(ctx, args)


@click.command(cls=Tail)
@click.argument("name")
@click.option("-u", "--user", metavar="NAME", help="Whom to log in as.  [default: whom cloud-init let in]")
@click.option(
    "-i",
    "--identity",
    "keys",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Private key. Repeat.  [default: vmkit's own, and yours that the guest knows]",
)
@click.option("-p", "--port", type=click.IntRange(1, 65535), help="Port of the ssh server in the guest.  [default: 22]")
@click.option("--deadline", default="60s", show_default=True, help="How long to wait for the ssh server.")
@click.option("--print", "show", is_flag=True, help="Print the command line of ssh, and stop.")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[PROGRAM [ARGUMENT]...]")
@click.pass_obj
def ssh(
    context: Context,
    name: str,
    *,
    user: str | None,
    keys: tuple[Path, ...],
    port: int | None,
    deadline: str,
    show: bool,
    argv: tuple[str, ...],
) -> None:
    """Log in to a VM by ssh, or run a program in it; user, address and key are found by themselves.

    The host key is taken from the guest agent where one answers, so that a login is safe from the first time on. To a
    VM on another machine it goes by way of that one.
    """
    import shlex

    from vmkit.system.process import replace

    seconds = parse_duration(deadline, path="--deadline")
    with progress() as reporter:
        server = context.client().guests.ssh(name, user=user, keys=keys, port=port, deadline=seconds, reporter=reporter)
    if show:
        click.echo(shlex.join(server.argv(argv)))
        return
    context.close()
    replace(server.argv(argv))


@click.command(name="exec", cls=Tail)
@click.argument("name")
@_by
@_user
@click.option("-i", "--stdin", "with_stdin", is_flag=True, help="Pass on standard input, to its end.")
@click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait for its end.")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="PROGRAM [ARGUMENT]...")
@click.pass_context
def exec_(
    ctx: click.Context, name: str, *, by: str, user: str | None, with_stdin: bool, timeout: float, argv: tuple[str, ...]
) -> None:
    """Run a program inside a VM, and pass on its output and exit status. For a shell take sh -c '...'."""
    from vmkit.vm.access.api import By

    stdin = sys.stdin.buffer.read() if with_stdin else None
    with progress() as reporter:
        done = ctx.obj.client().guests.run(
            name, argv, by=By(by), user=user, timeout=timeout, stdin=stdin, reporter=reporter
        )
    click.echo(done.stdout, nl=False)
    click.echo(done.stderr, nl=False, err=True)
    ctx.exit(done.status if done.status >= 0 else 128 - done.status)


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.argument("target")
@_by
@_user
@output_option
@click.pass_obj
def copy(context: Context, sources: tuple[str, ...], target: str, *, by: str, user: str | None, output: str) -> None:
    """Copy files and folders into a VM or out of it. A path in a VM is NAME:PATH.

    \b
    vmkit copy site/ web1:/var/www/
    vmkit copy web1:/var/log/syslog web1:/etc/hosts .

    A file is there whole or not at all. By the agent what arrives in the guest belongs to root, by ssh to the user.
    """  # noqa: D301 - click's \b keeps the lines of the example
    from vmkit.vm.access.api import By

    with progress() as reporter:
        done = context.client().guests.copy(sources, target, by=By(by), user=user, reporter=reporter)
    shown = [{**to_plain(d), "bytes": str(Bytes(d.bytes))} for d in done] if output == "table" else done
    columns = [
        ("SOURCE", "source"),
        ("TARGET", "target"),
        ("FILES", "files"),
        ("SIZE", "bytes"),
        ("SECONDS", "seconds"),
    ]
    emit(shown, output=output, columns=columns)
