"""`vmkit inventory`: VMs for Ansible."""

from __future__ import annotations

import click

from vmkit.cli.context import Context
from vmkit.cli.render import emit


@click.command()
@click.option("--list", "as_script", is_flag=True, help="Answer as an inventory script of Ansible's does to --list.")
@click.option("--host", "only", metavar="NAME", help="Answer as such a script does to --host: the variables of one VM.")
@click.option("--direct", is_flag=True, help="Do not lead ssh through the VMs' host where that is another machine.")
@click.option(
    "-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True, help="How to print it."
)
@click.pass_obj
def inventory(context: Context, *, as_script: bool, only: str | None, direct: bool, output: str) -> None:
    """Print the VMs of a host as an inventory for Ansible.

    \b
    vmkit inventory >vms.yaml && ansible -i vms.yaml image_debian -m ping
    printf '#!/bin/sh\\nexec vmkit inventory "$@"\\n' >vms && chmod +x vms && ansible -i ./vms vmkit -m ping

    The first is a file as things are now, the second asks anew each time. Groups: vmkit (all of them), state_STATE,
    image_IMAGE and label_KEY_VALUE. A label ansible_NAME becomes the variable of that name.
    """  # noqa: D301 - click's \b keeps the lines of the example
    if as_script and only:
        raise click.UsageError("--list and --host do not go together")
    overviews = context.client().overviews
    if only is not None:
        emit(overviews.variables(only, reach=not direct), output="json")
        return
    found = overviews.inventory(reach=not direct)
    if as_script:
        from vmkit.vm.inventory import answer_list

        emit(answer_list(found), output="json")
    else:
        emit(found, output=output)
