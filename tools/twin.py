"""Write the run file of a progressive run's fixed-size twin.

The twin has the target's size from the start, and takes as many FLOPs, tokens or steps as the run
in all, with a warm-up and a decay of its own. What the run was given on its command line is given
here too:

    python tools/twin.py run.yaml --equal flops -o twin.yaml --train.train_iters 500
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_grow.config.run import parse_run, to_run_file
from megatron_grow.cost.flops import Definition
from megatron_grow.files.durable import write_whole
from megatron_grow.inputs.errors import UserError
from megatron_grow.report.twin import Cost, Equal, Twin, ends_of, twin_of


def main() -> None:
    """Parse the command line and write the run file."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run_file", metavar="RUN_FILE", help="of the run that grows (YAML)")
    parser.add_argument("--equal", choices=get_args(Equal), required=True)
    parser.add_argument(
        "--flops",
        choices=get_args(Definition),
        default="total",
        help="with --equal flops: those of the whole model (default), or of its layers alone",
    )
    parser.add_argument(
        "--run",
        type=Path,
        metavar="DIR",
        help="output_dir of the run, where a rule or a method decided when its stages ended",
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="absent: the run file is printed"
    )
    args, overrides = parser.parse_known_args()
    try:
        config = parse_run(["--config", args.run_file, *overrides])
        ends = ends_of(args.run) if args.run else {}
        twin = twin_of(config, args.equal, part=args.flops, ends=ends)
        text = _heading(twin, args.run_file, args.equal, args.flops) + to_run_file(twin.config)
        if args.output is None:
            print(text, end="")
        else:
            _write(args.output, text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _heading(twin: Twin, run_file: str, equal: Equal, part: Definition) -> str:
    """Comments that say what the file is, and what both runs take."""
    of = {"total": " of the whole model", "blocks": " of the layers"}[part]
    what = f"{'FLOPs' if equal == 'flops' else equal}{of if equal == 'flops' else ''}"
    lines = [
        f"The fixed-size twin of {run_file}, of equal {what}: its target from the start, with a",
        "warm-up and a decay of its own.",
        f"  the run that grows  {_described(twin.grown)}",
        f"  this run            {_described(twin.cost)}",
        f"Made by: python tools/twin.py {shlex.join(sys.argv[1:])}",
    ]
    return "".join(f"# {line}\n" for line in lines)


def _described(cost: Cost) -> str:
    return (
        f"{cost.steps:,} steps, {cost.tokens:.4g} tokens, {cost.flops['total']:.4g} FLOPs "
        f"({cost.flops['blocks']:.4g} of the layers)"
    )


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, [text.encode()])
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error}") from None


if __name__ == "__main__":
    main()
