"""The smallest converter: from a source to a sink, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from megatron_grow.checkpoint.huggingface.sink import HuggingFaceSink
from megatron_grow.checkpoint.sink import Block, Sink
from megatron_grow.checkpoint.source import Source
from megatron_grow.state.boxes import full, split
from megatron_grow.state.kinds import MAIN_PARAM


def blocks(source: Source, most: int) -> list[Block]:
    """All weights in blocks of at most ``most`` values, the last first."""
    return [
        Block(key, MAIN_PARAM, box)
        for key, tensor in source.tensors.items()
        for box in split(full(tensor.shape), most)
    ][::-1]


def values(
    source: Source, sink: Sink, wanted: list[Block]
) -> Iterator[tuple[Block, dict[str, torch.Tensor]]]:
    for block in wanted:
        found = source.read(block.key, block.kind, block.box)
        names = sink.stored(block.key, block.kind)
        yield block, {name: found.to(dtype) for name, dtype in names.items()}


def export(source: Source, directory: Path, most: int = 300, **options: Any) -> HuggingFaceSink:
    """Write what ``source`` holds, in its own precision, as a Hugging Face model."""
    dtypes = {key: source.dtype(key, MAIN_PARAM) for key in source.tensors}
    sink = HuggingFaceSink(directory, source.record.model_config, dtypes, **options)
    sink.prepare()
    sink.finish([sink.write(0, values(source, sink, blocks(source, most)))])
    return sink
