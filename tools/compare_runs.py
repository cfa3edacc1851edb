"""Compare a progressive run with its fixed-size twin.

Writes summary.json and pictures to --output, of the loss (loss.png, loss_vs_flops.png) and of each
other number that both runs have (masked_lm_accuracy.png), and prints a table:

    python tools/compare_runs.py runs/progressive runs/fixed --output runs/report
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from rich.console import Console

from megatron_grow.inputs.errors import UserError
from megatron_grow.report.summary import figures_of, summary_table, write_report


def main() -> None:
    """Parse the command line, write the report and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run_a", type=Path, metavar="RUN_A", help="output_dir of a run")
    parser.add_argument("run_b", type=Path, metavar="RUN_B", help="output_dir of the other")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.01,
        help="relative gap of validation losses at which the runs count as mixed (default 0.01)",
    )
    args = parser.parse_args()
    try:
        summary = write_report(args.run_a, args.run_b, args.output, tolerance=args.tolerance)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    console = Console(highlight=False)
    console.print(summary_table(summary))
    for name in figures_of(summary):
        console.print(args.output / name, soft_wrap=True)


if __name__ == "__main__":
    main()
