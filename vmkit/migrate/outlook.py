"""What is expected of a migration that is about to begin: measuring, predicting, and the terms for its controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmkit.migrate import record
from vmkit.migrate.control import Terms
from vmkit.migrate.measure import measure
from vmkit.migrate.modes import Mode, Ways
from vmkit.migrate.policies import QEMU_DOWNTIME_S
from vmkit.migrate.predict import Measured, Prediction, expected, predict
from vmkit.progress import Finished, Reporter, Started, silent
from vmkit.system.clock import stopwatch

if TYPE_CHECKING:
    from vmkit.hypervisor.domain import Domain
    from vmkit.migrate.plan import Request
    from vmkit.migrate.preflight import Case


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is expected.

    Attributes:
        ways: which techniques are open.
        measured: what the predictions rest on.
        found: the prediction of each technique.
        terms: the budget and the deadline they were judged by, which the controller is held to as well.
    """

    ways: Ways
    measured: Measured
    found: Mapping[Mode, Prediction]
    terms: Terms

    @property
    def expected(self) -> Prediction:
        """The technique that the controller would end in."""
        return expected(dict(self.found), self.terms)


def look_ahead(request: Request, case: Case, ways: Ways, domain: Domain, reporter: Reporter = silent) -> Outlook:
    """Watch the guest for about a second, and predict. Nothing of it is changed.

    QEMU is asked through libvirt's monitor call, which libvirt notes as a taint of the domain ('custom-monitor').
    """
    elapsed = stopwatch()
    reporter(Started("predict"))
    lines = record.read()
    learned = record.learn(lines, case.guest.uuid, case.source.uri, case.target.uri)
    measured = measure(domain, case.guest, request.bandwidth, learned)
    outlook = judged(
        request, ways, measured, budget(request, domain), None if learned.link is None else learned.link.likely
    )
    reporter(Finished("predict", elapsed(), outlook.expected.why))
    return outlook


def judged(request: Request, ways: Ways, measured: Measured, allowed: float, link: float | None) -> Outlook:
    """Predictions and terms from what was measured. Pure."""
    terms = Terms(
        mode=request.mode,
        budget=allowed,
        deadline=request.deadline,
        post_copy=ways.post_copy,
        throttle=request.wish.auto_converge,
        limited=request.bandwidth is not None,
        link=None if link is None else int(link),
        used=int(measured.used.low),
        extra=measured.extra.likely,
        curve=tuple((p.seconds, p.bytes) for p in measured.dirty),
    )
    return Outlook(ways, measured, predict(measured, terms), terms)


def budget(request: Request, domain: Domain) -> float:
    """Seconds that the guest may stand still: as asked, or as its QEMU is set."""
    from vmkit.hypervisor.migration import max_downtime

    if request.max_downtime is not None:
        return request.max_downtime
    setting = max_downtime(domain)
    return QEMU_DOWNTIME_S if setting is None else setting / 1000
