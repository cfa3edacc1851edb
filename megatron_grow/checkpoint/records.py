"""Reading what a checkpoint says of its run, in this project's words or in Megatron-LM's."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from megatron_grow.checkpoint.archive import Archive
from megatron_grow.checkpoint.layout import COMMON, RECORD, WRITER
from megatron_grow.checkpoint.manifest import read_checked
from megatron_grow.checkpoint.megatron_lm.optimizer import check_sharding, optimizer_step
from megatron_grow.checkpoint.megatron_lm.record import record_of_megatron
from megatron_grow.checkpoint.record import Beginning, GrowthEvent, Record, StageEnd
from megatron_grow.config.errors import UserError
from megatron_grow.config.ranges import check_fields


def read_record(checkpoint: Path) -> Record:
    """The record of a ``torch_dist`` checkpoint; Megatron-LM's own says the same in other words.

    Raises:
        UserError: missing, unreadable or of another version; of what cannot be built here.
    """
    path = checkpoint / RECORD
    if not path.exists() and (checkpoint / COMMON).exists():
        return _of_common_state(checkpoint / COMMON)
    try:
        values = json.loads(read_checked(path))
        if values["format"] != Record.format:
            raise UserError(
                f"{path} has format {values['format']}; this version reads {Record.format}"
            )
        if "consumed_tokens" not in values:  # of a version that had one length for the whole run
            length = values["config"]["train"]["seq_length"]
            values["consumed_tokens"] = values["consumed_samples"] * length
        values["growths"] = [GrowthEvent(**growth) for growth in values["growths"]]
        values["stage_ends"] = [StageEnd(**end) for end in values.get("stage_ends", [])]
        begun = values.get("begun_from", [])
        values["begun_from"] = [Beginning(**beginning) for beginning in begun]
        return _checked(Record(**values), path)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing, and so is {COMMON}: nothing says what {checkpoint} holds"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _checked(record: Record, path: Path) -> Record:
    """``record``, of values that can be."""
    try:
        for part in (record, *record.growths, *record.stage_ends, *record.begun_from):
            check_fields(part)
        _ = record.model_config, record.layout
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return record


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
