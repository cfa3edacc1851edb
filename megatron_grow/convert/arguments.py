"""The command line of ``tools/convert_checkpoint.py``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

from megatron_grow.config.ranges import Count, PathText, Positive, Range, Seed, shown, wrong


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``convert_checkpoint.py``."""
    parser = argparse.ArgumentParser(
        prog="convert_checkpoint.py",
        description="Grow, reshard, import, export and verify checkpoints in bounded memory. "
        "Under torchrun the work is spread over processes.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, told: str, *paths: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=told, description=told, allow_abbrev=False)
        added.set_defaults(verb=name)
        for path in paths:
            added.add_argument(path.lower(), type=_path, metavar=path)
        return added

    shown = verb("inspect", "what a checkpoint holds, and whether it is whole", "CKPT")
    shown.add_argument("--check", action="store_true", help="read all of it and compare digests")

    grown = verb("grow", "grow a model, with its optimizer state", "SRC", "DST")
    grown.add_argument("--grow", type=_path, required=True, metavar="YAML", help="model: and grow:")
    grown.add_argument("--seed", type=_as(Seed), help="of fresh values (default: the run's)")
    resharded = verb("reshard", "change layout, format or precision", "SRC", "DST")
    for writes in (grown, resharded):
        writes.add_argument(
            "--weights-only", action="store_true", help="leave optimizer state behind"
        )
        _add_layout(writes)
        _add_writing(writes)

    imported = verb("import-hf", "from a Hugging Face model's directory", "SRC", "DST")
    _add_layout(imported)
    _add_writing(imported)

    exported = verb("export-hf", "to a Hugging Face model's directory", "SRC", "DST")
    exported.add_argument("--family", help="model_type (default: as imported, or what fits)")
    exported.add_argument(
        "--side-files",
        type=_directory,
        metavar="DIR",
        help="with the tokenizer, generation settings, ...",
    )
    exported.add_argument(
        "--max-shard-size",
        type=_as(Positive),
        default=1.0,
        metavar="GB",
        help="default 1",
    )
    _add_writing(exported, "fp32", "bf16", "fp16")

    compared = verb("verify", "compare two checkpoints of any formats", "A", "B")
    compared.add_argument(
        "--weights-only", action="store_true", help="leave out optimizer state and progress"
    )
    compared.add_argument("--forward", action="store_true", help="run both and compare logits")
    compared.add_argument("--text", type=_path, metavar="FILE", help="what --forward reads")
    return parser


def _add_layout(parser: argparse.ArgumentParser) -> None:
    layout = parser.add_argument_group("layout")
    for name in ("tensor", "pipeline"):
        layout.add_argument(
            f"--{name}-model-parallel-size",
            type=_as(Count),
            default=1,
            metavar="N",
            help="default 1",
        )
    layout.add_argument(
        "--virtual-pipeline-model-parallel-size",
        type=_as(Count),
        metavar="N",
        help="of legacy files",
    )
    layout.add_argument(
        "--format",
        choices=("torch_dist", "torch"),
        default="torch_dist",
        help="torch: Megatron's legacy files, for exactly this layout, weights alone",
    )


def _add_writing(parser: argparse.ArgumentParser, *precisions: str) -> None:
    writing = parser.add_argument_group("writing")
    writing.add_argument(
        "--precision", choices=precisions or ("fp32", "bf16"), help="of weights (default: same)"
    )
    writing.add_argument("--allow-rounding", action="store_true", help="let --precision lose bits")
    writing.add_argument("--no-verify", action="store_true", help="do not read it again")
    writing.add_argument("--dry-run", action="store_true", help="tell what would be done")
    writing.add_argument(
        "--threads",
        type=_as(Annotated[int, Range(least=1, most=1024)]),
        default=min(4, 1 + (os.cpu_count() or 1)),
        metavar="N",
    )


def _as(hint: Any) -> Callable[[str], Any]:
    """What reads an option's text as a field of a run file of the type ``hint`` is read."""

    def read(text: str) -> Any:
        try:
            value = get_args(hint)[0](text)
        except ValueError:
            value = text
        if reason := wrong(value, hint):
            raise argparse.ArgumentTypeError(f"{shown(value)} must be {reason}")
        return value

    return read


def _path(text: str) -> Path:
    return Path(_as(PathText)(text))


def _directory(text: str) -> Path:
    if not (path := Path(text)).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a directory")
    return path
