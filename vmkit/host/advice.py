"""Judging a host: what is missing, what that costs, and what mends it. Pure: facts in, findings out."""

from __future__ import annotations

from collections.abc import Iterator

from vmkit.host import advice_devices, advice_kvm, advice_system, advice_xen
from vmkit.host.facts.host import HostFacts
from vmkit.host.finding import ORDER, Finding


def advise(facts: HostFacts) -> tuple[Finding, ...]:
    """Every finding, the most serious first."""
    found: list[Finding] = []
    judges: tuple[Iterator[Finding], ...] = (
        advice_kvm.judge(facts),
        advice_xen.judge(facts),
        advice_devices.judge(facts),
        advice_system.judge(facts),
    )
    for judge in judges:
        found += judge
    return tuple(sorted(found, key=lambda f: ORDER.index(f.level)))  # stable: areas keep their order
