"""The command line of ``tools/convert_checkpoint.py``."""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

from megatron_grow.checkpoint.format import Format
from megatron_grow.checkpoint.formats import DEFAULT, builtin
from megatron_grow.checkpoint.layout import DTYPES
from megatron_grow.inputs.ranges import Count, PathText, Range, Seed, shown, wrong

LAYOUT = {
    "tensor_model_parallel_size": "default 1",
    "pipeline_model_parallel_size": "default 1",
    "virtual_pipeline_model_parallel_size": "of formats that are cut for pipeline stages",
}
"""Fields of a parallel layout that checkpoints are cut for, and what is told of them."""


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
    _add_source(shown)

    grown = verb("grow", "grow a model, with its optimizer state", "SRC", "DST")
    grown.add_argument("--grow", type=_path, required=True, metavar="YAML", help="model: and grow:")
    grown.add_argument("--seed", type=_as(Seed), help="of fresh values (default: the run's)")
    resharded = verb("reshard", "change layout, format or precision", "SRC", "DST")
    for writes in (grown, resharded):
        writes.add_argument(
            "--weights-only", action="store_true", help="leave optimizer state behind"
        )
        _add_source(writes)
        _add_layout(writes)
        _add_writing(writes, tuple(DTYPES))

    for name, kind in builtin():
        if not kind.exchange:
            continue
        model = f"a {kind.title} model's directory"
        imported = verb(f"import-{kind.exchange}", f"from {model}", "SRC", "DST")
        imported.set_defaults(verb="import", of=name)
        _add_layout(imported)
        _add_writing(imported, tuple(DTYPES))
        exported = verb(f"export-{kind.exchange}", f"to {model}", "SRC", "DST")
        exported.set_defaults(verb="export", format=name)
        _add_options(exported, kind)
        _add_source(exported)
        _add_writing(exported, kind.precisions)

    compared = verb("verify", "compare two checkpoints of any formats", "A", "B")
    compared.add_argument(
        "--weights-only", action="store_true", help="leave out optimizer state and progress"
    )
    compared.add_argument("--forward", action="store_true", help="run both and compare logits")
    compared.add_argument("--text", type=_path, metavar="FILE", help="what --forward reads")
    _add_source(compared)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--source-format",
        metavar="FORMAT",
        help="of what is read, by import path (package.module:Class); built in ones are recognised",
    )


def _add_options(parser: argparse.ArgumentParser, kind: type[Format]) -> None:
    """Those that a format has for itself."""
    hints = get_type_hints(kind, include_extras=True)
    for option in fields(kind):
        told: dict[str, Any] = {"type": _as(hints[option.name]), **option.metadata}
        name = option.name.replace("_", "-")
        parser.add_argument(f"--{name}", default=option.default, **told)


def _add_layout(parser: argparse.ArgumentParser) -> None:
    layout = parser.add_argument_group("layout")
    for name, told in LAYOUT.items():
        option = name.replace("_", "-")
        layout.add_argument(f"--{option}", type=_as(Count), metavar="N", help=told)
    known = "; ".join(f"{name}: {_told(kind)}" for name, kind in builtin())
    layout.add_argument(
        "--format",
        default=DEFAULT,
        help=f"default {DEFAULT}, or an import path (package.module:Class); {known}",
    )


def _told(kind: type[Format]) -> str:
    return (inspect.getdoc(kind) or "").splitlines()[0].rstrip(".")


def _add_writing(parser: argparse.ArgumentParser, precisions: Sequence[str]) -> None:
    writing = parser.add_argument_group("writing")
    writing.add_argument("--precision", choices=precisions, help="of weights (default: same)")
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
