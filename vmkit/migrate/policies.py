"""Published controllers of other programs, as policies that a recording can be replayed through.

They are written from the descriptions named at each; what they would have done to the transfer itself (a guest slowed
down, say) cannot be seen in a recording of another one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from vmkit.migrate.control import AllowDowntime, Decision, GiveUp, Look, Policy, PostCopy, Steering, Terms

GIB: Final = 2**30
PAGE: Final = 4096
QEMU_DOWNTIME_S: Final = 0.3
"""QEMU's default limit (migration/options.c: DEFAULT_MIGRATE_SET_DOWNTIME)."""
FORCED: Final = 2000.0
"""More than any stop takes: QEMU stops the guest at once."""


@dataclass(slots=True)
class Virsh:
    """`virsh migrate --live` without options: QEMU's default, for as long as it takes."""

    terms: Terms
    name: str = "virsh"
    start_downtime: float = QEMU_DOWNTIME_S

    def step(self, look: Look) -> Decision | None:  # noqa: ARG002
        """Nothing, ever."""
        return None


@dataclass(slots=True)
class Xen:
    """Xen's own stop rule: fewer than 50 dirty pages, or 5 rounds (tools/libs/guest/xg_sr_save.c)."""

    terms: Terms
    name: str = "xen"
    start_downtime: float = 0.0

    def step(self, look: Look) -> Decision | None:
        """Stop by the number of rounds."""
        if look.iteration > 1 and look.remaining < 50 * PAGE:
            return AllowDowntime(FORCED, "fewer than 50 dirty pages")
        if look.iteration > 5:
            return AllowDowntime(FORCED, "5 rounds are done")
        return None


@dataclass(slots=True)
class Nova:
    """OpenStack Nova: a downtime ramp in 10 steps to 500 ms, 75 s a GiB apart, and an end after 800 s a GiB.

    Source: nova/conf/libvirt.py (live_migration_downtime, _steps, _delay, _completion_timeout).
    """

    terms: Terms
    name: str = "nova"
    start_downtime: float = 0.05
    _step: int = 0

    def step(self, look: Look) -> Decision | None:
        """By the clock alone."""
        gib = max(2.0, look.total / GIB)  # Nova counts less than 2 GiB as 2
        if look.t > 800 * gib:
            return PostCopy("time is over") if self.terms.post_copy else GiveUp("time is over", late=True)
        step = min(10, int(look.t / (75 * gib)))
        if step <= self._step:
            return None
        self._step = step
        return AllowDowntime(round(0.05 + 0.045 * step, 3), f"step {step} of 10")


@dataclass(slots=True)
class Ovirt:
    """oVirt: 100 ms, then 150, 200, 300, 400, 500 ms at iterations 1, 2, 3, 4, 6; then an end.

    Source: packaging/dbscripts/upgrade/.../0000_config.sql, migration policy 'Minimal downtime'.
    """

    terms: Terms
    name: str = "ovirt"
    start_downtime: float = 0.1
    _allowed: float = 0.1

    def step(self, look: Look) -> Decision | None:
        """By the number of rounds."""
        done = look.iteration - 1
        if done > 6:
            return PostCopy("7 rounds are done") if self.terms.post_copy else GiveUp("7 rounds are done")
        allowed = next((d for n, d in ((6, 0.5), (4, 0.4), (3, 0.3), (2, 0.2), (1, 0.15)) if done >= n), 0.1)
        if allowed <= self._allowed:
            return None
        self._allowed = allowed
        return AllowDowntime(allowed, f"{done} rounds are done")


@dataclass(slots=True)
class Kubevirt:
    """KubeVirt's stall detection (VEP 248).

    It has stalled when what remains is at least 96 % of the best value that is older than 40 s; then it waits for a
    local minimum, and stops the guest if by a smoothed bandwidth (EWMA, 0.4) that takes at most 1.5 x 900 ms.
    """

    terms: Terms
    name: str = "kubevirt"
    start_downtime: float = QEMU_DOWNTIME_S
    _seen: list[tuple[float, int]] = field(default_factory=list)
    _bandwidth: float = 0.0
    _falling: int = 0

    def step(self, look: Look) -> Decision | None:
        """Stop, switch or end once it has stalled."""
        if look.bandwidth:
            self._bandwidth += (look.bandwidth - self._bandwidth) * (0.4 if self._bandwidth else 1.0)
        self._seen.append((look.t, look.remaining))
        old = [r for t, r in self._seen if t <= look.t - 40.0]
        before = self._seen[-2][1] if len(self._seen) > 1 else look.remaining
        if look.iteration < 2 or not old or look.remaining < 0.96 * min(old):
            return None
        if look.remaining < before:  # still falling: the minimum is yet to come
            self._falling = look.remaining
            return None
        if self.terms.post_copy:
            return PostCopy("no progress for 40 s")
        estimate = (self._falling or look.remaining) / (self._bandwidth or 1.0)
        if estimate <= 1.5 * 0.9:
            return AllowDowntime(FORCED, f"no progress for 40 s, and a stop takes {estimate:.2f} s")
        return GiveUp(f"no progress for 40 s, and a stop takes {estimate:.2f} s")


@dataclass(slots=True)
class Proxmox:
    """Proxmox VE: the allowed downtime is doubled whenever what remains grows, without an end (QemuMigrate.pm)."""

    terms: Terms
    name: str = "proxmox"
    start_downtime: float = 0.1
    _allowed: float = 0.1
    _last: int = 0
    _grew: int = 0

    def step(self, look: Look) -> Decision | None:
        """Double it after every sixth time that more remains than before."""
        grew, self._last = look.remaining >= self._last > 0 and look.iteration > 1, look.remaining
        self._grew += grew
        if self._grew <= 5:
            return None
        self._grew = 0
        self._allowed *= 2
        return AllowDowntime(self._allowed, "more remains than before")


POLICIES: Final = (Steering, Virsh, Xen, Nova, Ovirt, Kubevirt, Proxmox)


def policies(terms: Terms) -> list[Policy]:
    """One of each, fresh."""
    return [make(terms) for make in POLICIES]
