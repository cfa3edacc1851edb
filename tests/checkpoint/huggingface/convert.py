"""The smallest converter: from a source to a writer, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from megatron_grow.checkpoint.huggingface.writer import HuggingFaceWriter
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.writer import Block, Writer
from megatron_grow.state.boxes import full, split
from megatron_grow.state.kinds import MAIN_PARAM


def blocks(source: Reader, most: int) -> list[Block]:
    """All weights in blocks of at most ``most`` values, the last first."""
    return [
        Block(key, MAIN_PARAM, box)
        for key, tensor in source.tensors.items()
        for box in split(full(tensor.shape), most)
    ][::-1]


def values(
    source: Reader, writer: Writer, wanted: list[Block]
) -> Iterator[tuple[Block, dict[str, torch.Tensor]]]:
    for block in wanted:
        found = source.read(block.key, block.kind, block.box)
        names = writer.stored(block.key, block.kind)
        yield block, {name: found.to(dtype) for name, dtype in names.items()}


def export(source: Reader, directory: Path, most: int = 300, **options: Any) -> HuggingFaceWriter:
    """Write what ``source`` holds, in its own precision, as a Hugging Face model."""
    dtypes = {key: source.dtype(key, MAIN_PARAM) for key in source.tensors}
    writer = HuggingFaceWriter(directory, source.record.model_config, dtypes, **options)
    writer.prepare()
    writer.finish([writer.write(0, values(source, writer, blocks(source, most)))])
    return writer
