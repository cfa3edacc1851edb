"""Check that what a model computes, and how far training moves it, does not depend on its size.

A few steps are trained on made-up tokens in several widths and depths of the run's model, by its
parametrization and its optimizer: from no layers, or from half the width, and on after a growth to
all. Writes
coordinates.png and coordinates.json to --output, and prints a table. The last column is the power
of the size with which a number goes: around 0 for changes where hyper-parameters transfer. Fields
of the run may follow:

    python tools/coordinate_check.py run.yaml --output DIR --parametrization.name standard
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed
warnings.filterwarnings("ignore")


def main() -> None:
    """Parse the command line, measure, write the picture and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run_file", metavar="RUN_FILE", help="its stages are left aside (YAML)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--widths", type=int, nargs="*", default=[32, 64, 128, 256], help="default: %(default)s"
    )
    parser.add_argument(
        "--depths", type=int, nargs="*", default=[2, 4, 8, 16], help="default: %(default)s"
    )
    parser.add_argument(
        "--steps", type=int, default=4, help="before and after the growth (default %(default)s)"
    )
    parser.add_argument(
        "--growth",
        choices=("depth", "width"),
        default="depth",
        help="from no layers to all (default), or from half the width to the whole",
    )
    args, overrides = parser.parse_known_args()
    from rich.console import Console

    from megatron_grow.benchmark.coordinate_figure import figure_of
    from megatron_grow.benchmark.coordinates import measure, report
    from megatron_grow.config.run import parse_run
    from megatron_grow.files.durable import write_whole
    from megatron_grow.inputs.errors import UserError

    try:
        config = parse_run(["--config", args.run_file, *overrides])
        args.output.mkdir(parents=True, exist_ok=True)  # before minutes of work
        sizes = {"width": args.widths, "depth": args.depths}
        sweeps = measure(config, sizes, args.steps, args.growth)
        how = f"{config.parametrization.name}, {config.optimizer.optimizer}, {args.steps} steps, "
        how += f"then a growth in {args.growth}"
        found = report(sweeps, how)
        numbers = json.dumps(found.to_dict(), indent=1).encode() + b"\n"
        write_whole(args.output / "coordinates.png", [figure_of(sweeps)])
        write_whole(args.output / "coordinates.json", [numbers])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: --output {args.output} cannot be written: {error}", file=sys.stderr)
        sys.exit(2)
    console = Console(highlight=False)
    console.print(found.table())
    console.print(args.output / "coordinates.png", soft_wrap=True)


if __name__ == "__main__":
    main()
