"""The formats of checkpoints: built in ones in the order in which they are recognised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from blake3 import blake3

from megatron_grow.checkpoint.format import Format
from megatron_grow.checkpoint.layout import MANIFEST, RECORD
from megatron_grow.config.model import ModelConfig
from megatron_grow.files.regular import read_regular
from megatron_grow.inputs.registry import Registry

FORMATS: Registry[Format] = Registry(
    "a checkpoint format",
    "format",
    Format,
    {
        "torch_dist": "megatron_grow.checkpoint.torch_dist.format:TorchDist",
        "torch": "megatron_grow.checkpoint.legacy.format:Legacy",
        "huggingface": "megatron_grow.checkpoint.huggingface.format:HuggingFace",
    },
)
DEFAULT = "torch_dist"
"""What runs save in, and what is written where nothing else is asked for."""

Formats = Iterable[type[Format]]


def builtin() -> Iterator[tuple[str, type[Format]]]:
    """The formats of the table, by name."""
    for name in FORMATS.builtin:
        yield name, FORMATS.find(name, "format")


def format_of(directory: Path, also: Formats = ()) -> type[Format] | None:
    """The format of the checkpoint that ``directory`` is; None: it is none that is known.

    Args:
        directory: any path.
        also: formats to recognise before those that are built in.
    """
    known = (*also, *(built for _, built in builtin()))
    return next((kind for kind in known if kind.recognises(directory)), None)


def other(path: str | None, where: str) -> tuple[type[Format], ...]:
    """Formats to recognise besides those that are built in: the one at an import path, if any.

    Raises:
        UserError: it is none; the message begins with ``where``.
    """
    return () if path is None else (FORMATS.find(path, where),)


def identity(checkpoint: Path) -> str:
    """What tells a checkpoint from any other, and is the same of its copies.

    It is a digest of the small files that say what is in it; empty where there are none.
    """
    found = blake3()
    for name in (MANIFEST, RECORD, *(name for _, kind in builtin() for name in kind.identifying)):
        try:
            content = read_regular(checkpoint / name)
        except FileNotFoundError:
            continue
        found.update(name.encode() + len(content).to_bytes(8, "little") + content)
    return found.hexdigest() if found.digest() != blake3().digest() else ""


def growth_note(before: ModelConfig, after: ModelConfig) -> str:
    """Which formats still hold a model that is grown from ``before`` into ``after``, for people."""
    return "; ".join(note for _, kind in builtin() if (note := kind.growth_note(before, after)))
