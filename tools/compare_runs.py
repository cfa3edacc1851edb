"""Compare runs that grow with fixed-size runs; docs/comparing.md.

Two runs, a progressive one and its fixed-size twin:

    python tools/compare_runs.py runs/progressive runs/fixed --output runs/report

Any number of runs, seeds and lengths; those that never grew are what the others are compared with:

    python tools/compare_runs.py runs/seed*/* --output runs/report

Writes summary.json and pictures to --output, and prints tables.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from rich.console import Console

from megatron_grow.inputs.errors import UserError
from megatron_grow.report.fair_summary import FIGURES, fair_tables, write_fair_report
from megatron_grow.report.summary import figures_of, summary_table, write_report


def main() -> None:
    """Parse the command line, write the report and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="output_dirs of runs")
    parser.add_argument(
        "--against",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN",
        help="what the others are compared with (default: the runs that never grew)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.01,
        help="relative gap of validation losses at which runs count as mixed (default 0.01)",
    )
    parser.add_argument(
        "--flops-tolerance",
        type=float,
        default=0.02,
        help="relative gap of FLOPs at which finished runs count as equal (default 0.02)",
    )
    args = parser.parse_args()
    try:
        tolerances = {"tolerance": args.tolerance, "cost_tolerance": args.flops_tolerance}
        if len(args.runs) == 2 and not args.against:
            ours, twin = args.runs
            summary = write_report(ours, twin, args.output, **tolerances)
            tables, pictures = [summary_table(summary)], figures_of(summary)
        else:
            summary = write_fair_report(args.runs, args.against, args.output, **tolerances)
            tables, pictures = fair_tables(summary), list(FIGURES)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    console = Console(highlight=False)
    console.print(*tables)
    for name in pictures:
        console.print(args.output / name, soft_wrap=True)


if __name__ == "__main__":
    main()
