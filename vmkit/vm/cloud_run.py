"""What cloud-init in a guest says about its run."""

from __future__ import annotations

import json
import re
from typing import Final

from vmkit.errors import EffectError, NotFoundError, VmkitError
from vmkit.hypervisor.domain import Domain
from vmkit.vm import guest

_SCRIPT: Final = (
    "cat /run/cloud-init/result.json 2>/dev/null && exit 0; "
    "[ -e /run/cloud-init/disabled ] && exit 4; [ -d /run/cloud-init ] && exit 5; "
    "command -v cloud-init >/dev/null || exit 3; exit 5"
)
"""Files that cloud-init writes afresh at each boot (https://docs.cloudinit.io, 'status'); `cloud-init status` says the
same and takes a second of CPU time, which a guest that boots has not to spare."""
_FINISHED: Final = re.compile(r"Cloud-init v\. \S+ finished at ")
"""The last line that cloud-init writes to the console (its default final_message)."""


def finished(domain: Domain, console: str) -> str:
    """'done' when cloud-init has come to its end in this boot, 'disabled' where it was told not to run; else ''.

    Asks the guest agent; where that does not answer, looks for cloud-init's last line on the console.

    Raises:
        EffectError: it ended with errors; the details are they.
        NotFoundError: the guest has no cloud-init.
    """
    try:
        answer = guest.run(domain, ["sh", "-c", _SCRIPT], timeout=20, patience=3)
    except VmkitError:
        return "done" if _FINISHED.search(console) else ""
    match answer.status:
        case 0:
            return _judge(domain.name, answer.stdout)
        case 3:
            raise NotFoundError(
                f"{domain.name} has no cloud-init",
                hint=f"wait for something else: vmkit wait {domain.name} --for agent",
            )
        case 4:
            return "disabled"
    return ""


def _judge(name: str, result: str) -> str:
    try:
        errors = json.loads(result)["v1"]["errors"]
    except (ValueError, KeyError, TypeError):
        return ""  # it is being written
    if errors:
        raise EffectError(
            f"cloud-init in {name} ended with errors",
            left="the VM runs",
            details=tuple(str(e)[:200] for e in errors[:8]),
            hint=f"vmkit exec {name} -- cat /var/log/cloud-init.log",
        )
    return "done"
