"""What the models of a family cost that one run released, beside as many runs of their own.

python tools/compare_family.py runs/family/trunk --alone runs/family/alone
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_grow.files.durable import write_whole
from megatron_grow.inputs.errors import UserError
from megatron_grow.report.family import lines, load_family, summary


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="output_dir of the run")
    parser.add_argument(
        "--alone",
        type=Path,
        metavar="DIR",
        help="with the output_dir of a run of each member's size from nothing, by its name",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the numbers as JSON")
    args = parser.parse_args()
    try:
        family = load_family(args.run)
        for line in lines(family, args.alone):
            print(line)
        if args.output:
            text = json.dumps(summary(family), indent=2) + "\n"
            write_whole(args.output, [text.encode()])
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
