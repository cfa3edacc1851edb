"""What a checkpoint says of its run, in this version and in the one before."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_grow.checkpoint.layout import RECORD
from megatron_grow.checkpoint.record import Record, read_record


def test_a_record_of_one_length_counts_its_samples_in_tokens(tmp_path: Path) -> None:
    record = Record(10, 0, 80, 80 * 64, 10, {}, "fp32", {"train": {"seq_length": 64}})
    (tmp_path / RECORD).write_text(record.to_json())
    assert read_record(tmp_path) == record

    older = json.loads(record.to_json())
    del older["consumed_tokens"]
    (tmp_path / RECORD).write_text(json.dumps(older))
    assert read_record(tmp_path) == record
