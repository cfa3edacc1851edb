"""What a ``torch_dist`` checkpoint says about its run; Megatron-LM's own says it in other words."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from megatron_grow.checkpoint.archive import Archive
from megatron_grow.checkpoint.layout import RECORD
from megatron_grow.checkpoint.megatron_lm.optimizer import check_sharding, optimizer_step
from megatron_grow.checkpoint.megatron_lm.record import record_of_megatron
from megatron_grow.checkpoint.megatron_lm.state import WRITER
from megatron_grow.checkpoint.record import Record, read_record
from megatron_grow.checkpoint.torch_dist.names import COMMON
from megatron_grow.inputs.errors import UserError


def record_of(checkpoint: Path) -> Record:
    """Where the training stands that a directory holds.

    Raises:
        UserError: missing, unreadable or of another version; of what cannot be built here.
    """
    path, common = checkpoint / RECORD, checkpoint / COMMON
    if path.exists():
        return read_record(checkpoint)
    if common.exists():
        return _of_common_state(common)
    raise UserError(f"{path} is missing, and so is {COMMON}: nothing says what {checkpoint} holds")


def _of_common_state(path: Path) -> Record:
    archive = Archive(path)
    common = archive.content
    if not isinstance(common, dict) or not isinstance(common.get("args"), Namespace):
        raise UserError(f"{path} holds no args of Megatron-LM: nothing says what its model is")
    if common.get(WRITER):
        raise UserError(f"{path.with_name(RECORD)} is missing: the checkpoint is not complete")
    check_sharding(common, str(path))
    return record_of_megatron(
        common["args"], common.get("iteration"), optimizer_step(archive, common), str(path)
    )
