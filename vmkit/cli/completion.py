"""Completion of the command line by shells: commands and options by click, and names by asking what is there."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click
from click.shell_completion import BashComplete, CompletionItem, ZshComplete, add_completion_class, get_completion_class

from vmkit.cli.completion_names import FILES, FOLDERS, KINDS, Find
from vmkit.cli.context import Context

if TYPE_CHECKING:
    from vmkit.client import Client

    _Text = click.ParamType[str]
else:
    _Text = click.ParamType  # generic since click 8.2 only

VARIABLE: Final = "_VMKIT_COMPLETE"
"""Environment variable by which a shell asks; click's convention."""

_PATIENCE: Final = 3.0
"""Seconds that another machine has to name its VMs. Whoever presses Tab does not wait longer."""
_PATIENCE_HERE: Final = 20.0
"""The same for this machine, which answers at once unless it is very busy."""

_BASH: Final = """\
%(complete_func)s() {
    local IFS=$'\\n' type value
    COMPREPLY=()
    while IFS=',' read -r type value; do
        case $type in
            dir) compopt -o dirnames 2>/dev/null ;;
            file) compopt -o default 2>/dev/null ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_WORDS="${COMP_LINE:0:COMP_POINT}" COMP_CWORD="${COMP_WORDS[COMP_CWORD]}" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_ZSH: Final = """\
#compdef %(prog_name)s
%(complete_func)s() {
    local -a named described
    local type value help
    while read -r type && read -r value && read -r help; do
        case $type in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain) if [[ $help == _ ]]; then named+=("$value"); else described+=("$value:$help"); fi ;;
        esac
    done < <(COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT - 1)) \\
        %(complete_var)s=zsh_complete %(prog_name)s 2>/dev/null)
    (( $#described )) && _describe -V unsorted described -U
    (( $#named )) && compadd -U -V unsorted -a named
    return 0
}
if [[ $funcstack[1] == _%(prog_name)s ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""
"""Click's own runs `compdef`, and completes nothing, each second time that zsh calls it as the file of a function."""


class WholeLineComplete(BashComplete):
    """Completion for bash by the line itself, since bash cuts words at colons, of which URIs have some."""

    source_template = _BASH

    def source(self) -> str:
        """The function for bash 4.4 or newer; which bash will read it is not asked."""
        return self.source_template % self.source_vars()

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the one that is being typed, and what there is of that."""
        import os

        from click.shell_completion import split_arg_string

        line = os.environ["COMP_WORDS"]
        words = split_arg_string(line)
        begun = not line[-1:].isspace() and len(words) > 1
        return words[1:-1] if begun else words[1:], words[-1] if begun else ""


class AutoloadedComplete(ZshComplete):
    """Completion for zsh, as a file in fpath or read in by `source`."""

    source_template = _ZSH


add_completion_class(WholeLineComplete, "bash")
add_completion_class(AutoloadedComplete, "zsh")


class Named(_Text):
    """Text that names one of the things that there are."""

    name = "text"

    def __init__(self, find: Find) -> None:
        self._find = find

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names that begin so, but for those that the line has already."""
        typed = ctx.params.get(param.name or "")
        there = set(typed) if isinstance(typed, tuple | list) else set()
        client = _client(ctx)
        far = bool(urlsplit(client.uri or "").hostname)
        found = _within(_PATIENCE if far else _PATIENCE_HERE, lambda: list(self._find(client, ctx.params)))
        return [CompletionItem(n, help=h or None) for n, h in found if n.startswith(incomplete) and n not in there]


def _client(ctx: click.Context) -> Client:
    context = ctx.find_object(Context)
    uri = context.uri if context and context.uri else ctx.find_root().params.get("connect")
    return Context(_quiet(uri)).client()


def _quiet(uri: str | None) -> str | None:
    """The URI with which ssh asks for no password: nobody expects a prompt behind a Tab (libvirt.org/uri.html)."""
    if uri is None:
        from vmkit.hypervisor.host import default_uri

        uri = default_uri()
    if "+ssh" not in uri.partition(":")[0] or "no_tty=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}no_tty=1"


def _within(seconds: float, call: Callable[[], list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """What the call returns; nothing if it fails or takes too long. Completion never says why."""
    found: list[tuple[str, str]] = []

    def work() -> None:
        try:
            found.extend(call())
        except Exception as e:
            del e

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return list(found)


def attach(command: click.Command, path: str) -> None:
    """Have every parameter of a command that names something complete it, and those that take a file complete files."""
    if isinstance(command, click.Group):
        for name, sub in command.commands.items():
            attach(sub, f"{path} {name}")
    group = path.split()[0]
    for param in command.params:
        if param.type is not click.STRING:
            continue
        if param.metavar == "FILE" or f"{path} {param.name}" in FILES:
            param.type = click.Path()
        elif f"{group} {param.name}" in FOLDERS:
            param.type = click.Path(file_okay=False)
        elif find := next((KINDS[k] for k in _keys(path, group, param) if k in KINDS), None):
            param.type = Named(find)


def _keys(path: str, group: str, param: click.Parameter) -> tuple[str, ...]:
    name = param.name or ""
    return (f"{path} {name}", f"{group} {name}", name)


def answer(cli: click.Command) -> None:
    """Answer a shell that asks what could stand at the cursor. Whatever goes wrong, a shell gets no error."""
    import contextlib
    import os

    with contextlib.suppress(Exception):
        shell, _, instruction = os.environ[VARIABLE].partition("_")
        complete = get_completion_class(shell)
        if complete is not None and instruction == "complete":
            click.echo(complete(cli, {}, "vmkit", VARIABLE).complete())


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes a shell complete vmkit's commands, options, and names of VMs and images.

    \b
    bash:  vmkit completion bash >/etc/bash_completion.d/vmkit
    zsh:   vmkit completion zsh >/usr/local/share/zsh/site-functions/_vmkit
    fish:  vmkit completion fish >~/.config/fish/completions/vmkit.fish

    For one session of bash: eval "$(vmkit completion bash)". Names are asked of the host of -c; one that does not
    answer within seconds completes nothing.
    """  # noqa: D301 - click's \b keeps the lines
    made: Any = get_completion_class(shell)
    click.echo(made(ctx.find_root().command, {}, "vmkit", VARIABLE).source())
