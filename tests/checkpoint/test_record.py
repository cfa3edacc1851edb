"""What a checkpoint says of its run, in this version and in the one before."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from megatron_grow.checkpoint.layout import RECORD
from megatron_grow.checkpoint.megatron_lm.args import model_from_args
from megatron_grow.checkpoint.megatron_lm.state import megatron_args
from megatron_grow.checkpoint.record import Record, StageEnd, read_record
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.convert.synthetic import SyntheticReader
from megatron_grow.inputs.errors import UserError


def test_a_record_of_one_length_counts_its_samples_in_tokens(tmp_path: Path) -> None:
    record = Record(10, 0, 80, 80 * 64, 10, {}, "fp32", {"train": {"seq_length": 64}})
    (tmp_path / RECORD).write_text(record.to_json())
    assert read_record(tmp_path) == record

    older = json.loads(record.to_json())
    del older["consumed_tokens"]
    (tmp_path / RECORD).write_text(json.dumps(older))
    assert read_record(tmp_path) == record


def test_a_record_says_where_stages_ended(tmp_path: Path) -> None:
    ends = [StageEnd(0, 12, "loss_below: loss 2.4 is below 2.5"), StageEnd(2, 30, "at_most")]
    record = Record(31, 3, 8, 8, 8, {}, "fp32", {}, stage_ends=ends)
    (tmp_path / RECORD).write_text(record.to_json())
    assert read_record(tmp_path).stage_ends == ends

    older = json.loads(record.to_json())
    del older["stage_ends"]
    (tmp_path / RECORD).write_text(json.dumps(older))
    assert read_record(tmp_path).stage_ends == []
    (tmp_path / RECORD).write_text(json.dumps({**older, "stage_ends": [{"stage": 0, "step": "x"}]}))
    with pytest.raises(UserError, match="is damaged"):
        read_record(tmp_path)


@pytest.mark.parametrize(("tokenizer", "said"), [("bytes", 256), ("tokenizer.json", 257)])
def test_megatron_is_told_of_as_many_tokens(tokenizer: str, said: int) -> None:
    """A NullTokenizer adds an end of document to the vocabulary that it is given."""
    record = SyntheticReader(ModelConfig(vocab_size=257)).record
    record.config["data"]["tokenizer"] = tokenizer
    layout = ParallelConfig(tensor_model_parallel_size=2)
    args = megatron_args(record, layout, ckpt_format="torch_dist", with_optimizer=False)
    assert (args["vocab_size"], args["padded_vocab_size"]) == (said, 512)
    read = model_from_args(Namespace(**args), "args")
    assert read.vocab_size == 257
