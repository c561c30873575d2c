"""Copies that were cut off: the source uses its own files again, finished copies stay, the others are removed."""

from __future__ import annotations

from vmkit.hypervisor.host import Host
from vmkit.progress import Reporter
from vmkit.system.journal import Entry
from vmkit.vm.clone.ledger import clean_up, drop


def recover(entry: Entry, reporter: Reporter) -> str:
    """Settle one entry; returns what was found and done.

    Raises:
        UnreachableError: the host does not answer; the entry is kept.
    """
    del reporter
    record = entry.record
    with Host.connect(record.data["uri"]) as host:
        said = clean_up(host, record.data)
    if image := record.data.get("image"):
        drop(image)
    kept = [c["name"] for c in record.data["copies"] if c["uuid"] in record.data["done"]]
    what = "; ".join(said) or "nothing was left of it"
    return f"copying {record.subject} was cut off; {what}" + (f"; finished: {', '.join(kept)}" if kept else "")
