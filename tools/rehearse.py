"""Rehearse a job on this machine, without its GPUs; docs/rehearsal.md.

The real command runs on all ranks, each a process here, on devices that have no memory: every
stage, growth, a save and a resume. It tells the memory of each rank by part, messages, where the
host waits for the device, whether it fits, and what would have failed:

  python tools/rehearse.py --config examples/gpt2_7b/run.yaml --world-size 64 --ranks 0,16,32,48

Options of the run go behind. The exit code is 1 where the job would fail or does not fit, and 3
where this machine ended the rehearsal.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_grow.cost.devices import device
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.numbers import numbers


def _plan_only(argv: list[str], world_size: int, ranks: list[int], console: Any, path: Any) -> int:
    from megatron_grow.rehearsal.planning import plan_growths, table

    found = plan_growths(argv, world_size, ranks)
    if path:
        path.write_text(json.dumps([asdict(each) for each in found], indent=1) + "\n")
    console.print(table(found))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Rehearse, and say what came of it; the exit code."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, metavar="RUN_FILE", help="of the run (YAML)")
    add("--world-size", type=int, required=True, metavar="N", help="ranks of the job")
    add(
        "--ranks",
        default="all",
        metavar="LIST",
        help="those that go through forward and backward passes, as 0,16-19; others take part in "
        "all the rest, which is faster (default: all)",
    )
    add("--gpu", default="h100", help="what each rank has (default %(default)s)")
    add("--steps", type=int, default=2, metavar="N", help="of each stage (default %(default)s)")
    add(
        "--plan-only",
        action="store_true",
        help="what planning each growth costs --ranks, and what travels to them: one process "
        "stands for each in turn, and N may be thousands",
    )
    add("--json", type=Path, metavar="FILE", help="write every figure here")
    args, overrides = parser.parse_known_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # ranks are forked: no threads before
    warnings.filterwarnings("ignore")
    try:
        gpu = device(args.gpu, "--gpu")
        ranks = numbers(args.ranks, args.world_size, "--ranks")
        from rich.console import Console

        console = Console(highlight=False, markup=False)
        console.width = max(console.width, 140)  # of its tables
        argv = ["--config", args.config, *overrides]
        if args.plan_only:
            return _plan_only(argv, args.world_size, ranks, console, args.json)
        from megatron_grow.rehearsal.rehearse import rehearse
        from megatron_grow.rehearsal.report import render, to_dict

        found = rehearse(
            argv,
            world_size=args.world_size,
            passes=ranks,
            device=gpu,
            steps=args.steps,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    told = to_dict(found)
    if args.json:
        args.json.write_text(json.dumps(told, indent=1) + "\n")
    console.print(render(found))
    if told["killed"]:
        return 3
    return 0 if told["completed"] and told["fits"] else 1


if __name__ == "__main__":
    sys.exit(main())
