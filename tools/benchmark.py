"""Measure speed and memory on this machine, side by side in one run.

  python tools/benchmark.py throughput            tokens/s against transformers' GPT-2
  python tools/benchmark.py seam                  what the CPU seam costs
  python tools/benchmark.py layer-rows            what a row on the sizes of layers costs its step
  python tools/benchmark.py growth-step           a step after growth against a fixed-size run's
  python tools/benchmark.py growth-pause          the pause of a growth against a checkpoint save
  python tools/benchmark.py save-pause            the pause of a save, asynchronous or not
  python tools/benchmark.py conversion            conversions of a checkpoint against cp
  python tools/benchmark.py symmetry              what makes copies of units learn apart, how fast
  python tools/benchmark.py gpu --output DIR      whether one GPU computes the same, how fast

Each takes a few minutes at most, and little if nothing else keeps the machine busy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed
warnings.filterwarnings("ignore")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "benchmark",
        choices=(
            "throughput",
            "seam",
            "layer-rows",
            "growth-step",
            "growth-pause",
            "save-pause",
            "conversion",
            "symmetry",
            "gpu",
        ),
    )
    add = parser.add_argument
    add("--num-layers", type=int, metavar="N", help="default 6; pauses and conversion 12")
    add("--hidden-size", type=int, metavar="N", help="default 384; pauses and conversion 768")
    add(
        "--num-attention-heads",
        type=int,
        metavar="N",
        help="default 6; pauses and conversion 12",
    )
    add("--vocab-size", type=int, default=50304, metavar="N", help="default %(default)s")
    add("--seq-length", type=int, metavar="N", help="default 256; pauses and conversion 1024")
    add(
        "--batch",
        type=int,
        default=8,
        metavar="N",
        help="sequences in a step (default %(default)s)",
    )
    add(
        "--precision",
        choices=("fp32", "bf16"),
        nargs="+",
        help="default: both in throughput, else fp32",
    )
    add(
        "--threads",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="default: cores (%(default)s)",
    )
    add(
        "--repetitions",
        type=int,
        default=5,
        metavar="N",
        help="measured turns of each (default %(default)s)",
    )
    add(
        "--directory",
        type=Path,
        default=Path("runs/benchmark"),
        help="conversion: on the disk to be measured (default %(default)s); needs three times the "
        "checkpoint's size",
    )
    add("--json", type=Path, metavar="FILE", help="write every figure here")
    gpu = parser.add_argument_group("gpu")
    gpu.add_argument(
        "--output",
        type=Path,
        default=Path("runs/gpu"),
        metavar="DIR",
        help="for gpu.json and gpu.md, which grow with every row (default %(default)s)",
    )
    gpu.add_argument(
        "--only", type=_names, metavar="PARTS", help="such as correctness,speed (default: all)"
    )
    gpu.add_argument(
        "--minutes",
        type=float,
        default=9.0,
        metavar="N",
        help="what there is no time for is left out, and named (default %(default)s)",
    )
    gpu.add_argument(
        "--size",
        choices=("full", "toy"),
        default="full",
        help="toy: models of a few thousand parameters, to see the command work without a GPU",
    )
    return parser.parse_args(argv)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def main(argv: list[str] | None = None) -> None:
    """Run one benchmark, print its table, write its JSON."""
    args = parse_args(argv)
    if args.benchmark == "gpu":
        sys.exit(_gpu(args))
    from rich.console import Console

    from megatron_grow.benchmark import (
        conversion,
        growth_pause,
        growth_step,
        layer_rows,
        save_pause,
        seam,
        symmetry,
        throughput,
    )
    from megatron_grow.config.model import ModelConfig

    large = args.benchmark in ("growth-pause", "save-pause", "conversion")
    model = ModelConfig(
        num_layers=args.num_layers or (12 if large else 6),
        hidden_size=args.hidden_size or (768 if large else 384),
        num_attention_heads=args.num_attention_heads or (12 if large else 6),
        vocab_size=args.vocab_size,
        max_position_embeddings=args.seq_length or (1024 if large else 256),
    )
    turns = args.threads, args.repetitions
    if args.benchmark == "throughput":
        precisions = args.precision or ("fp32", "bf16")
        report = throughput.measure(model, args.batch, precisions, *turns)
    elif args.benchmark == "seam":
        report = seam.measure(model, args.batch, (args.precision or ["fp32"])[0], *turns)
    elif args.benchmark == "layer-rows":
        report = layer_rows.measure(model, args.batch, (args.precision or ["fp32"])[0], *turns)
    elif args.benchmark == "growth-step":
        report = growth_step.measure(model, args.batch, (args.precision or ["fp32"])[0], *turns)
    elif args.benchmark == "conversion":
        report = conversion.measure(model, (args.precision or ["bf16"])[0], args.directory)
    elif args.benchmark == "save-pause":
        report = save_pause.measure(model, args.repetitions)
    elif args.benchmark == "symmetry":
        report = symmetry.measure()
    else:
        report = growth_pause.measure(model, args.repetitions)
    console = Console(highlight=False)
    console.print(report.table())
    console.print(", ".join(f"{name} {value}" for name, value in report.machine.items() if value))
    if args.json:
        args.json.write_text(json.dumps(report.to_dict(), indent=1) + "\n")


def _gpu(args: argparse.Namespace) -> int:
    """The exit code: 0 where nothing failed."""
    from megatron_grow.benchmark.gpu import command

    parts = args.only or tuple(command.PARTS)
    if unknown := [name for name in parts if name not in command.PARTS]:
        print(f"error: --only {unknown[0]}: parts are {', '.join(command.PARTS)}", file=sys.stderr)
        return 2
    say = partial(print, flush=True)
    return 0 if command.measure(args.output, parts, args.minutes, args.size, say) else 1


if __name__ == "__main__":
    main()
