"""The files of a ``torch_dist`` checkpoint beside its tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from megatron_grow.checkpoint.layout import RECORD
from megatron_grow.checkpoint.megatron_lm.state import common_state
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.torch_dist.names import COMMON, COMPLETE, METADATA
from megatron_grow.checkpoint.torch_dist.stored import stored_modules
from megatron_grow.state.tensors import LogicalTensor

COMPANIONS = (METADATA, COMMON, RECORD, COMPLETE)
"""Files that hold no tensors."""


def write_companions(directory: Path, record: Record, with_optimizer: bool) -> None:
    """Write what says which checkpoint it is, and whether it has an optimizer's state."""
    torch.save(common_state(record, with_optimizer=with_optimizer), directory / COMMON)
    (directory / RECORD).write_text(record.to_json())
    marker = {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    (directory / COMPLETE).write_text(json.dumps(marker))


def extra_state(tensors: Iterable[LogicalTensor]) -> dict[str, Any]:
    """What megatron-core's loader asks of every projection: an extra state, empty but for FP8."""
    return {
        f"{key.removesuffix('weight')}_extra_state/shard_{place}": [None]
        for tensor in tensors
        if tensor.stacked and tensor.is_partitioned and tensor.key.endswith(".weight")
        for key, place in stored_modules(tensor)
    }
