"""Taking up the making of an image that was cut off."""

from __future__ import annotations

from pathlib import Path

from vmkit.image import store
from vmkit.progress import Reporter, silent
from vmkit.system.journal import Entry
from vmkit.values import check_name


def recover(entry: Entry, reporter: Reporter = silent) -> str:
    """Remove the half image; put back one that was being replaced. Says in one line what it did."""
    del reporter
    return store.settle(check_name(entry.record.subject), Path(str(entry.record.data.get("folder", ""))))
