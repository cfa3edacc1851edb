"""Plan a run before GPUs are booked: layouts, memory, time and cost; docs/planning.md.

    python tools/plan_run.py run.yaml --gpu h100 --num-gpus 256

It chooses a layout and a micro-batch for each stage, says why, and prints what to write into the
run file. Options of the run go behind, such as --model.vocab_size 50257, which spares it the
tokenizer. Needs no GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig, parse_run
from megatron_grow.cost.devices import DEVICES, device
from megatron_grow.cost.step_time import Machine
from megatron_grow.inputs.errors import UserError
from megatron_grow.planning.efficiency import ASSUMED, Efficiency, read_measured
from megatron_grow.planning.plan import RunPlan, plan_run
from megatron_grow.planning.summary import summary
from megatron_grow.planning.text import text

Number = TypeVar("Number", int, float)

_LINKS = 0.8
"""Of the speed of links that data sheets give; what NCCL's rings reach for large messages."""
_LATENCY = 20e-6
"""Seconds of a short message between GPUs; what NCCL's smallest all-reduces take in a node."""


def main() -> int:
    """Parse the command line, plan, and print; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("run_file", metavar="RUN_FILE", help="of the run (YAML)")
    parser.add_argument("--gpu", required=True, metavar="NAME", help=f"{', '.join(DEVICES)}")
    parser.add_argument("--num-gpus", type=_positive(int), required=True, metavar="N")
    speed = parser.add_mutually_exclusive_group()
    speed.add_argument(
        "--efficiency",
        type=_positive(float),
        metavar="SHARE",
        help=f"of its bf16 peak that a GPU reaches while it computes (default: {ASSUMED}, assumed)",
    )
    speed.add_argument(
        "--measured", type=Path, metavar="FILE", help="gpu.json of tools/benchmark.py gpu"
    )
    parser.add_argument(
        "--network",
        type=_positive(float),
        metavar="GB/S",
        help="between nodes, in each direction, for each GPU (default: of the maker's own nodes)",
    )
    parser.add_argument(
        "--price", type=_positive(float), metavar="PRICE", help="of one GPU for an hour"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="gets plan.md, summary.json and cost.png"
    )
    args, overrides = parser.parse_known_args()
    try:
        plan = _planned(args, parse_run(["--config", args.run_file, *overrides]))
        print(text(plan), end="")
        if args.output is not None:
            _write(args.output, plan)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _positive(kind: type[Number]) -> Callable[[str], Number]:
    """A type of an argument."""

    def number(written: str) -> Number:
        value = kind(written)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    number.__name__ = f"positive {kind.__name__}"
    return number


def _planned(args: argparse.Namespace, config: RunConfig) -> RunPlan:
    gpu = device(args.gpu, "--gpu")
    network = gpu.network if args.network is None else 1e9 * args.network
    if network is None:
        raise UserError(
            f"--network is missing: there is no usual speed between nodes of {args.gpu}; give GB/s "
            "for each GPU"
        )
    if args.measured is not None:
        efficiency_of = read_measured(args.measured).of
    else:
        told = Efficiency(args.efficiency or ASSUMED, "as told" if args.efficiency else "ASSUMED")

        def efficiency_of(model: ModelConfig) -> Efficiency:
            return told

    machine = Machine(gpu, network, ASSUMED, link_efficiency=_LINKS, latency=_LATENCY)
    return plan_run(_sized(config), args.gpu, args.num_gpus, machine, efficiency_of, args.price)


def _sized(config: RunConfig) -> RunConfig:
    if config.model.vocab_size is not None:
        return config
    from megatron_grow.data.tokenizers.vocabulary import with_vocabulary

    return replace(config, model=with_vocabulary(config.model, config.data))


def _write(output: Path, plan: RunPlan) -> None:
    from megatron_grow.planning.figure import figure
    from megatron_grow.report.files import write_files

    write_files(output, summary(plan), {"plan.md": text(plan).encode(), "cost.png": figure(plan)})


if __name__ == "__main__":
    sys.exit(main())
