"""Giving the guest of a copy its identity, through its agent."""

from __future__ import annotations

import shlex
import time

from vmkit.errors import EffectError
from vmkit.hypervisor.domain import Domain
from vmkit.system.clock import Deadline
from vmkit.system.templates import template
from vmkit.vm import guest
from vmkit.vm.clone.identity import Identity

PATIENCE = 180.0
"""Seconds for the script: ssh host keys take tens of seconds on an emulated CPU."""


def script(identity: Identity, now: int) -> str:
    """What a shell in the guest reads: variables, then templates/identity.sh."""
    lines = [
        f"{c.old} {c.mac} {c.address} {c.gateway or '-'} {c.old_address} {c.old_gateway or '-'}"
        for c in identity.cards
        if c.old
    ]
    given = {
        "name": identity.name,
        "machine_id": identity.machine_id,
        "now": str(now),
        "seed": identity.seed,
        "seedless": "yes" if identity.seedless else "no",
        "cards": "\n".join(lines),
    }
    head = "".join(f"{key}={shlex.quote(value)}\n" for key, value in given.items())
    return head + template("identity.sh").read_text()


def take_identity(domain: Domain, identity: Identity) -> None:
    """Have the guest change host name, machine-id, MAC addresses, ssh host keys and clock, and seed its randomness.

    The cables are pulled while this runs. Addresses are asked for once they are plugged in.

    Raises:
        EffectError: the script failed.
        DeadlineError: the agent does not answer, or the script did not come to its end.
    """
    # What is sent in the first moment after a start from memory may be lost: so a ping first, which is given up soon.
    Deadline(PATIENCE).wait_for(
        f"the guest agent of {domain.name} does not answer", lambda: guest.answers(domain), interval=0.02
    )
    text = script(identity, int(time.time()))
    done = guest.run(domain, ["/bin/sh", "-s"], stdin=text.encode(), timeout=PATIENCE)
    if done.status != 0:
        raise EffectError(
            f"{domain.name} did not take its identity: {(done.stderr or done.stdout).strip()[-200:]}",
            hint="it needs a POSIX shell and ip, and systemd-networkd for another kind of address than the source's",
        )
