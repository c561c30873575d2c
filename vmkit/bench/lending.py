"""A card that takes part in a measurement: set up for it, and given back as it was. The journal knows what to undo."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from vmkit.bench.card import PREFIX, Card
from vmkit.device import lend
from vmkit.device.api import see
from vmkit.device.sriov import Sriov
from vmkit.device.usage import Kind
from vmkit.errors import ConflictError, NotFoundError
from vmkit.hypervisor.host import Host
from vmkit.progress import Note, Reporter, silent
from vmkit.system.journal import Entry


def set_up(host: Host, entry: Entry, card: Card, reporter: Reporter = silent) -> None:
    """Give a card its virtual function, if it has none, and note what `give_back` has to undo. Once for a measurement.

    Raises:
        RefusedError: not permitted. EffectError: the driver says no. Either way `give_back` undoes what was done.
    """
    if "card" in entry.record.data:
        return
    # Others may have made some meanwhile: theirs are not replaced.
    make = card.make and not see(host).facts.functions[card.address].vfs
    entry.advance("card", card={"net": card.net, "address": card.address, "host": card.host, "made": make})
    if make:
        reporter(Note(f"{card.net} gets a virtual function for the time of the measurement"))
        Sriov(lambda: host).set(card.address, 1)


def address(card: Card) -> None:
    """Give a card that was set up the address of the host's end, if it does not have it.

    To be asked for again before each use: systemd-networkd takes addresses that it does not know from an interface
    that it manages when its link comes back, and a card's link goes and comes as it gets virtual functions.

    Raises:
        RefusedError: not permitted. NotFoundError: the interface is gone.
    """
    from vmkit.system.netlink import Links

    with Links() as links, contextlib.suppress(ConflictError):
        links.add_address(card.net, card.host, PREFIX)


def give_back(host: Host, data: Mapping[str, Any], names: frozenset[str], reporter: Reporter = silent) -> list[str]:
    """Undo what a journal entry says was done to a card; returns in words what that was.

    Functions that were about to be lent to a VM of `names` when that was cut off go back to their driver. A virtual
    function that was made stays if somebody else uses it by now.

    Raises:
        EffectError: a driver does not take its function back, or the card does not give one up.
    """
    from vmkit.system.netlink import Links

    card = data.get("card")
    if card is None:
        return []
    done = []
    seen = see(host)
    uses = seen.uses()
    for claim in seen.facts.claims.values():
        left = claim.address not in uses or uses[claim.address].kind is Kind.ORPHAN
        if claim.vm in names and left:
            done.append(lend.give_back(seen.machine, claim))
    function = seen.facts.functions.get(card["address"])
    net = function.nets[0] if function is not None and function.nets else card["net"]
    with Links() as links:
        try:
            gone = links.remove_address(net, card["host"], PREFIX)
        except NotFoundError:  # with its interface
            gone = False
    if gone:
        done.append(f"removed the address {card['host']} of {net}")
    if card["made"] and function is not None and len(function.vfs) == 1:
        try:
            Sriov(lambda: host).set(function.address, 0)
        except ConflictError as e:
            reporter(Note(f"{net} keeps the virtual function that it got: {e.message}", warning=True))
        else:
            done.append(f"took the virtual function of {net} away")
    return done
