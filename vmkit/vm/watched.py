"""A long call of libvirt, carried out in a thread while this one tells how far it is and looks for a wish to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from vmkit.errors import VmkitError
from vmkit.hypervisor.domain import Domain
from vmkit.progress import Advanced, Finished, Note, Reporter, Started
from vmkit.system.clock import stopwatch

_LOOK_S: Final = 0.2


def watched(
    domain: Domain,
    call: Callable[[], None],
    *,
    step: str,
    text: str,
    interrupted: Callable[[], str | None],
    reporter: Reporter,
) -> float:
    """Make the call; returns the seconds it took.

    A wish to stop becomes a request to libvirt to abort the job. Not every job can be aborted; then the call goes on to
    its end, and whoever called decides what the wish means.

    Raises:
        VmkitError: what the call raised.
    """
    failed: list[BaseException] = []

    def work() -> None:
        try:
            call()
        except BaseException as e:
            failed.append(e)

    reporter(Started(step, text))
    seconds = stopwatch()
    thread = threading.Thread(target=work, name=f"{step} {domain.name}", daemon=True)
    thread.start()
    asked = False
    while True:
        thread.join(_LOOK_S)
        if not thread.is_alive():
            break
        if not asked and (by := interrupted()):
            asked = True
            _ask_to_stop(domain, by, reporter)
        _tell(domain, step, reporter)
    if failed:
        raise failed[0]
    took = seconds()
    reporter(Finished(step, took, text))
    return took


def _ask_to_stop(domain: Domain, by: str, reporter: Reporter) -> None:
    try:
        domain.abort_job()
    except VmkitError:
        reporter(Note(f"{by}: libvirt cannot stop this half-way; it is let come to its end", warning=True))


def _tell(domain: Domain, step: str, reporter: Reporter) -> None:
    try:
        job = domain.job()
    except VmkitError:
        return
    if job is None:
        return
    done = job.raw.get("disk_processed", 0) + job.processed
    total = job.raw.get("disk_total", 0) + job.total
    if total:
        reporter(Advanced(step, float(done), float(total)))
