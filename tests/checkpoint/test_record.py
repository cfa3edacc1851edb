"""What a checkpoint says of its run, in this version and in the one before."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from megatron_grow.checkpoint.layout import RECORD
from megatron_grow.checkpoint.megatron_lm.args import model_from_args
from megatron_grow.checkpoint.megatron_lm.state import megatron_args
from megatron_grow.checkpoint.record import Record, read_record
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.convert.synthetic import SyntheticReader


def test_a_record_of_one_length_counts_its_samples_in_tokens(tmp_path: Path) -> None:
    record = Record(10, 0, 80, 80 * 64, 10, {}, "fp32", {"train": {"seq_length": 64}})
    (tmp_path / RECORD).write_text(record.to_json())
    assert read_record(tmp_path) == record

    older = json.loads(record.to_json())
    del older["consumed_tokens"]
    (tmp_path / RECORD).write_text(json.dumps(older))
    assert read_record(tmp_path) == record


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
