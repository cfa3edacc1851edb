"""What a BERT cannot be, or cannot do, is one line before any model is built."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import architecture_of, logical_tensors
from tests.bert import BERT, bert
from tests.toy import layout, run_config

MODELS: dict[str, tuple[ModelConfig, str]] = {
    "rotary positions": (
        replace(BERT, position_embedding_type="rope"),
        r"model\.position_embedding_type=rope: .*; must be learned_absolute",
    ),
    "an unknown order": (
        bert(norm_position="middle"),
        r"model\.options\.norm_position=middle must be ",
    ),
    "a head of another kind": (
        bert(sentence_head="yes"),
        r"model\.options\.sentence_head=yes must be ",
    ),
    "less than no types": (bert(token_types=-1), r"model\.options\.token_types=-1 must be "),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model(name: str) -> None:
    model, message = MODELS[name]
    with pytest.raises(UserError, match=message) as error:
        logical_tensors(model)
    assert "\n" not in str(error.value)


def stage_of(config: RunConfig, ranks: int = 1) -> Any:
    (stage,) = config.resolve(ranks)
    return stage


def test_layers_of_transformer_engine() -> None:
    config = run_config(StageSection(parallel=layout()), model=BERT)
    train = replace(config.train, transformer_impl="transformer_engine")
    with pytest.raises(UserError, match=r"^train\.transformer_impl=.* must be local$"):
        architecture_of(BERT).check(stage_of(config), train, "stages[0]")


def test_two_sentences_of_one_type() -> None:
    """A model imported so is one; it cannot be trained on pairs."""
    model = bert(token_types=1)
    config = run_config(StageSection(parallel=layout()), model=model)
    message = (
        r"^stages\[0\]: model\.options\.token_types=1 .* sentence_head=next_sentence .*give it 2"
    )
    with pytest.raises(UserError, match=message):
        architecture_of(model).check(stage_of(config), config.train, "stages[0]")


def test_tokens_of_a_sequence_shared_among_ranks() -> None:
    """Before anything is said of what that needs in another model."""
    config = run_config(StageSection(parallel=layout(context_parallel_size=2)), model=BERT)
    stage = stage_of(config, ranks=2)
    with pytest.raises(UserError, match=r"^stages\[0\]: .*context_parallel_size=2: .* must be 1$"):
        architecture_of(BERT).check(stage, config.train, "stages[0]")


def test_a_sequence_longer_than_the_positions_that_are_left() -> None:
    model = bert(first_position=2)
    config = run_config(StageSection(parallel=layout()), model=model)
    with pytest.raises(UserError, match=r"^stages\[0\]: train\.seq_length=16 is longer than 14, "):
        architecture_of(model).check(stage_of(config), config.train, "stages[0]")
