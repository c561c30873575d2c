"""scripts/bench: pick an area, measure, print a table, write JSON."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measure import BenchError, machine

if TYPE_CHECKING:
    from rich.console import Console

HERE = Path(__file__).parent
AREAS = sorted(
    p.stem for p in HERE.glob("*.py") if p.stem not in ("__main__", "measure", "migrate_picture", "migrate_table")
)


def main() -> int:
    areas = "\n".join(f"  {name:<10} {importlib.import_module(name).SUMMARY}" for name in AREAS)
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure vmkit beside a rival or a floor, both in the same run.",
        epilog=f"areas:\n{areas}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="what to measure")
    parser.add_argument("--quick", action="store_true", help="fewer runs: to see that it works, not to quote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there as well")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw it as well, as SVG: migrate")
    parser.add_argument("-c", "--connect", metavar="URI", help="host for those commands that need one")
    args = parser.parse_args()
    if args.name not in AREAS:
        print(f"error: no area '{args.name}'\nareas:\n{areas}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: what a bench made is taken down
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        result = importlib.import_module(args.name).run(quick=args.quick, uri=args.connect)
    except BenchError as e:
        print(f"error: {e}", file=sys.stderr)
        return 4
    except KeyboardInterrupt:
        return 130
    result = {
        "area": args.name,
        "quick": args.quick,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        **result,
    }
    draw = result.pop("draw", None)
    show(result)
    if args.picture and draw:
        args.picture.write_text(draw())
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if args.quick or all(c["holds"] for c in result["claims"]) else 1


def show(result: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    rows(console, result)
    for claim in result["claims"]:
        mark = "[green]holds[/]" if claim["holds"] else "[red]does not hold[/]"
        console.print(f"{claim['claim']}: ratio {claim['ratio']}, {mark}")
    m = result["machine"]
    versions = ", ".join(f"{k} {v.removeprefix('vmkit ')}" for k, v in result["versions"].items())
    console.print(f"machine: {m['cpu']}, {m['cpus']} CPUs, {m['memory_gib']} GiB, {m['system']}, kernel {m['kernel']},")
    console.print(
        f"         load {m['load_1min']}; Python {m['python']}, {versions}; host {result['uri']}", soft_wrap=True
    )


def rows(console: Console, result: dict[str, Any]) -> None:
    """What was measured: a table of its own if the area has one, else one row for each thing."""
    from rich.table import Table

    if wide := result.get("table"):
        table = Table(*wide["columns"], title=f"{result['area']}: {wide['title']}")
        for line in wide["lines"]:
            table.add_row(*line)
        console.print(table)
        return
    what = result.get("measured_is", f"wall time, {result['rows'][0]['runs']} runs of each, interleaved")
    table = Table(title=f"{result['area']}: {what}")
    table.add_column("command")
    slowest = any("slowest" in r for r in result["rows"])
    for heading in ("median ms", "q1 - q3", "fastest", *("slowest",) * slowest, f"of {result['relative']}"):
        table.add_column(heading, justify="right")
    for r in result["rows"] if slowest else sorted(result["rows"], key=lambda r: r["median"]):
        spread, share = f"{r['q1']:.0f} - {r['q3']:.0f}", f"{r['relative']:.2f}"
        last = (f"{r['slowest']:.1f}",) if slowest else ()
        table.add_row(r["name"], f"{r['median']:.1f}", spread, f"{r['fastest']:.1f}", *last, share)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
