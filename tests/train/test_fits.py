"""Sizes that the machine cannot hold are told before anything is made."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import DataSection, TrainSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.train.fits import check_fits


def check(*corpora: str, hidden_size: int = 64, **train: Any) -> None:
    config = RunConfig(
        model=ModelConfig(hidden_size=hidden_size, num_attention_heads=4, vocab_size=257),
        train=TrainSection(**{"global_batch_size": 1024, **train}),
        data=DataSection(train_data_path=list(corpora)),
    )
    check_fits(config, config.resolve(1), 1)


def test_the_order_of_a_blend() -> None:
    steps = psutil.virtual_memory().total // 10 // 1024 + 1
    with pytest.raises(UserError, match=r"^train\.train_iters asks for .* samples, whose order"):
        check("a", "b", train_iters=steps)
    check("a", train_iters=steps)
    check("a", "b")


def test_a_model_and_its_logits() -> None:
    with pytest.raises(UserError, match=r"^stages\[0\]: the model and its optimizer state"):
        check("a", hidden_size=1_000_000)
    with pytest.raises(
        UserError, match=r"train\.micro_batch_size=\d+ x seq_length=1024 would take"
    ):
        check("a", micro_batch_size=10**8, global_batch_size=10**8)
