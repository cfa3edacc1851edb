"""The command line of ``tools/convert_checkpoint.py``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


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
            added.add_argument(path.lower(), type=Path, metavar=path)
        return added

    shown = verb("inspect", "what a checkpoint holds, and whether it is whole", "CKPT")
    shown.add_argument("--check", action="store_true", help="read all of it and compare digests")

    grown = verb("grow", "grow a model, with its optimizer state", "SRC", "DST")
    grown.add_argument("--grow", type=Path, required=True, metavar="YAML", help="model: and grow:")
    grown.add_argument("--seed", type=int, help="of fresh values (default: the run's)")
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
        "--max-shard-size", type=_positive_float, default=1.0, metavar="GB", help="default 1"
    )
    _add_writing(exported, "fp32", "bf16", "fp16")

    compared = verb("verify", "compare two checkpoints of any formats", "A", "B")
    compared.add_argument(
        "--weights-only", action="store_true", help="leave out optimizer state and progress"
    )
    compared.add_argument("--forward", action="store_true", help="run both and compare logits")
    compared.add_argument("--text", type=Path, metavar="FILE", help="what --forward reads")
    return parser


def _add_layout(parser: argparse.ArgumentParser) -> None:
    layout = parser.add_argument_group("layout")
    for name in ("tensor", "pipeline"):
        layout.add_argument(
            f"--{name}-model-parallel-size", type=int, default=1, metavar="N", help="default 1"
        )
    layout.add_argument(
        "--virtual-pipeline-model-parallel-size", type=int, metavar="N", help="of legacy files"
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
        "--threads", type=_positive, default=min(4, 1 + (os.cpu_count() or 1)), metavar="N"
    )


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


def _positive_float(text: str) -> float:
    if not (number := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text} must be more than 0")
    return number


def _directory(text: str) -> Path:
    if not (path := Path(text)).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a directory")
    return path
