"""What a bench of migrations came to: rows, claims and a table. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

TOTAL, DOWNTIME = 1.1, 1.0
"""Most that vmkit may take of virsh's time, and of its downtime, where both come to an end."""
EVIDENCE_S = 5.0
ERROR, VERDICTS = 10.0, 95.0
"""Median error of the total time at most, and verdicts that came true at the least, percent."""

Seen = Mapping[tuple[str, str], Sequence[Any]]


def result_of(seen: Seen, replayed: Mapping[str, Sequence[Any]], accuracy: Any, budget: float) -> dict[str, Any]:
    """Everything that the bench gives back. `seen` holds the runs of each (cell, tool)."""
    rows = [_row(cell, tool, runs, seen) for (cell, tool), runs in seen.items()]
    return {
        "measured_is": "the transfer by libvirt's count, in rounds",
        "unit": "ms",
        "relative": "virsh",
        "rows": rows,
        "table": _table(seen),
        "policies": [
            {"cell": cell, "policy": r.policy, "end": r.end, "after_s": r.t, "stop_ms": r.downtime_ms}
            for cell, policies in replayed.items()
            for r in policies
        ],
        "prediction": _plain(accuracy),
        "claims": [*_claims(seen, budget), *_foretold(accuracy)],
    }


def middle(values: Sequence[float | None]) -> float | None:
    """The median of those that are known."""
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def ended(runs: Sequence[Any]) -> bool:
    """Whether most of the runs arrived."""
    return 2 * sum(r.end == "arrived" for r in runs) > len(runs)


def _row(cell: str, tool: str, runs: Sequence[Any], seen: Seen) -> dict[str, Any]:
    totals = sorted(r.total for r in runs)
    quarters = statistics.quantiles(totals, n=4, method="inclusive") if len(totals) > 1 else totals * 3
    base = middle([r.total for r in seen.get((cell, "virsh"), runs)]) or 1.0
    return {
        "name": f"{cell}, {tool}",
        "cell": cell,
        "tool": tool,
        "runs": len(runs),
        "arrived": sum(r.end == "arrived" for r in runs),
        "median": round(quarters[1], 1),
        "q1": round(quarters[0], 1),
        "q3": round(quarters[2], 1),
        "fastest": totals[0],
        "relative": round(quarters[1] / base, 2),
        "wall": middle([r.wall for r in runs]),
        "downtime": middle([r.downtime for r in runs]),
        "gap": middle([r.gap for r in runs]),
        "evidence": middle([r.evidence for r in runs]),
    }


def _table(seen: Seen) -> dict[str, Any]:
    """Cells down, tools across: seconds of the transfer, and ms of standing still by libvirt and by the prober."""
    tools = list(dict.fromkeys(t for _, t in seen))
    cells = list(dict.fromkeys(c for c, _ in seen))
    lines = [[cell, *(_words(seen.get((cell, tool), ())) for tool in tools)] for cell in cells]
    title = "seconds of the transfer, ms without the guest by libvirt's count / as a prober saw it"
    return {"title": title, "columns": ["share of the bandwidth x memory written", *tools], "lines": lines}


def _words(runs: Sequence[Any]) -> str:
    if not runs:
        return "-"
    total = (middle([r.total for r in runs]) or 0.0) / 1000
    if not ended(runs):
        return f"{runs[0].end} ({total:.1f} s)"
    down, gap = middle([r.downtime for r in runs]), middle([r.gap for r in runs])
    return f"{total:.1f} s, {_number(down)} / {_number(gap)} ms"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _claims(seen: Seen, budget: float) -> list[dict[str, Any]]:
    both = [
        c for c, t in seen if t == "vmkit" and (c, "virsh") in seen and ended(seen[c, t]) and ended(seen[c, "virsh"])
    ]
    found = []
    for what, most in (("total", TOTAL), ("downtime", DOWNTIME)):
        pairs = [[middle([getattr(r, what) for r in seen[c, t]]) for t in ("vmkit", "virsh")] for c in both]
        ratios = [ours / theirs for ours, theirs in pairs if ours is not None and theirs]
        if ratios:
            text = f"{what} of vmkit at most {most:g} x that of virsh, in each cell that both end ({len(ratios)})"
            found.append({"claim": text, "ratio": round(max(ratios), 2), "holds": max(ratios) <= most})
    ours = [r for (_, t), runs in seen.items() if t == "vmkit" for r in runs]
    late = [r.evidence / 1000 for r in ours if r.evidence is not None]
    if late:
        text = f"given up within {EVIDENCE_S:g} s of the first pass ({len(late)} runs)"
        found.append({"claim": text, "ratio": round(max(late), 1), "holds": max(late) <= EVIDENCE_S})
    stood = [r.downtime / 1000 / budget for r in ours if r.end == "arrived" and r.downtime is not None]
    if stood:
        text = f"downtime within the budget of {budget:g} s ({len(stood)} runs)"
        found.append({"claim": text, "ratio": round(max(stood), 2), "holds": max(stood) <= 1.0})
    return found


def _foretold(accuracy: Any) -> list[dict[str, Any]]:
    found = []
    if accuracy.total_error is not None:
        text = f"median error of the total time foretold at most {ERROR:g} % ({accuracy.compared} runs)"
        found.append({"claim": text, "ratio": accuracy.total_error, "holds": accuracy.total_error <= ERROR})
    if accuracy.verdicts_right is not None:
        text = f"at least {VERDICTS:g} % of the verdicts came true ({accuracy.verdicts} of {accuracy.compared} runs)"
        found.append({"claim": text, "ratio": accuracy.verdicts_right, "holds": accuracy.verdicts_right >= VERDICTS})
    return found


def _plain(accuracy: Any) -> dict[str, Any]:
    return {name: getattr(accuracy, name) for name in accuracy.__slots__}
