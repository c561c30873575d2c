"""What all tiers share: their order, a stop between tiers, a home folder of their own."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

TIERS = ("unit", "libvirt", "qemu", "lab_kvm", "lab_xen", "leftovers")
"""In the order in which they run. Each one takes for granted that those before it passed."""

# A shell starts what it runs in the background with SIGINT ignored, and children inherit that; tests send them SIGINT.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No limit of time for an example, since the machine may be busy; and on CI the same examples in every run.
hypothesis.settings.register_profile("vmkit", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("vmkit")

_spent: dict[str, float] = {}


def tier_of(item: pytest.Item) -> str:
    """The tier of a test: the folder of tests/ that it is in."""
    parts = item.path.relative_to(Path(__file__).parent).parts
    return parts[0] if parts[0] in TIERS else "unit"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: TIERS.index(tier_of(item)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    tier, start = tier_of(item), time.monotonic()
    try:
        return (yield)
    finally:
        _spent[tier] = _spent.get(tier, 0.0) + time.monotonic() - start
        # What is left behind is looked for after a failure too.
        if item.session.testsfailed and nextitem and tier_of(nextitem) not in (tier, "leftovers"):
            item.session.shouldstop = f"tier {tier} failed: later tiers are not run"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _spent:
        terminalreporter.section("time per tier")
        for tier in TIERS:
            if tier in _spent:
                terminalreporter.write_line(f"{tier:<10} {_spent[tier]:7.1f} s")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty VMKIT_HOME for one test."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("VMKIT_HOME", str(folder))
    return folder
