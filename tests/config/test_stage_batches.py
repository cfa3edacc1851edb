"""Sequence length and batch of a stage: what they resolve to, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig, parse_run, to_yaml
from megatron_grow.config.sections import TrainSection
from megatron_grow.config.stages import StageSection
from megatron_grow.inputs.errors import UserError
from tests.toy import MODEL, layout

TRAIN = TrainSection(
    train_iters=30, seq_length=16, global_batch_size=8, micro_batch_size=2, eval_iters=6
)


def run(
    *batches: tuple[int | float | None, dict[str, Any]],
    model: ModelConfig = MODEL,
    **train: Any,
) -> RunConfig:
    """Stages of one model: where each ends, and its ``train``."""
    stages = [StageSection(until=until, train=batch) for until, batch in batches]
    return RunConfig(model=model, train=replace(TRAIN, **train), stages=stages)


def refused(config: RunConfig, world_size: int = 1) -> str:
    with pytest.raises(UserError) as error:
        config.resolve(world_size)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_stages_all_is_as_in_train():
    [stage] = run().resolve(1)
    assert stage.batch == TRAIN.batch
    assert (stage.first_token, stage.eval_iters) == (0, 6)
    assert [stage.tokens_at(step) for step in (0, 1, 30)] == [0, 128, 30 * 128]


def test_three_stages():
    short = {"seq_length": 4, "global_batch_size": 24, "micro_batch_size": 3}
    stages = run((10, short), (20, {"global_batch_size": 4}), (None, {})).resolve(1)
    assert [(s.batch.describe(), s.batch.micro_batch_size) for s in stages] == [
        ("24 x 4", 3), ("4 x 16", 2), ("8 x 16", 2)
    ]  # fmt: skip
    assert [s.first_token for s in stages] == [0, 960, 960 + 640]
    assert stages[2].tokens_at(30) == 960 + 640 + 1280
    # 6 x 8 x 16 tokens in each evaluation
    assert [s.eval_iters * s.batch.tokens for s in stages] == [768] * 3
    assert [s.eval_iters for s in stages] == [8, 12, 6]


def test_the_last_stage_may_have_its_own_batch():
    """What is longest in ``train`` decides the samples, whether or not a stage reads them whole."""
    stages = run((15, {"seq_length": 8}), (None, {"global_batch_size": 16})).resolve(1)
    assert [s.batch.describe() for s in stages] == ["8 x 8", "16 x 16"]


@pytest.mark.parametrize(
    ("train", "parts"),
    [
        ({"lr": 1}, ["stages[0].train.lr", "global_batch_size, micro_batch_size, seq_length"]),
        ({"eval_iters": 1}, ["stages[0].train.eval_iters", "seq_length"]),
        ({"seq_length": "long"}, ["stages[0].train", "seq_length", "long"]),
        ({"seq_length": 4.5}, ["stages[0].train", "seq_length", "4.5"]),
        ({"global_batch_size": 0}, ["stages[0].train", "global_batch_size=0", "at least 1"]),
        ({"seq_length": 6}, ["stages[0].train.seq_length=6", "train.seq_length=16"]),
        ({"seq_length": 32}, ["stages[0].train.seq_length=32", "train.seq_length=16"]),
        ({"micro_batch_size": 3}, ["stages[0]", "global_batch_size=8", "micro_batch_size=3"]),
    ],
)
def test_bad_fields(train: dict[str, Any], parts: list[str]):
    message = refused(run((10, train), (None, {})))
    for part in parts:
        assert part in message


def test_the_batch_divides_over_the_stages_own_ranks():
    config = run((10, {"global_batch_size": 4, "micro_batch_size": 1}), (None, {}))
    assert config.resolve(4)
    assert "stages[0]: train.global_batch_size=4" in refused(config, 8)


# 3 x 4 = 12 tokens a step, then sequences of 16: every fourth step will do.
@pytest.mark.parametrize(
    ("until", "second_until", "advice"),
    [
        (10, 20, "stages[0].until=10 could be 8 or 12"),
        (3, 20, "stages[0].until=3 could be 4"),
        (11, 12, "stages[0].until=11 could be 8"),
        (0.2, 20, "stages[0].until=6 could be 4 or 8"),
        (2, 4, "stages[0].until=2 has no better value: change a batch before it"),
    ],
)
def test_a_stage_begins_at_a_whole_sequence(until: float, second_until: int, advice: str):
    odd = {"seq_length": 4, "global_batch_size": 3, "micro_batch_size": 1}
    config = run((until, odd), (second_until, {}), (None, {}))
    message = refused(config)
    assert message.startswith("stages[1] would begin after ") and "seq_length=16" in message
    assert message.endswith(advice)


@pytest.mark.parametrize("until", [4, 8, 12])
def test_the_advice_is_good(until: int):
    odd = {"seq_length": 4, "global_batch_size": 3, "micro_batch_size": 1}
    [_, stage, _] = run((until, odd), (20, {}), (None, {})).resolve(1)
    assert stage.first_token == 12 * until


def test_an_evaluation_is_whole_batches_in_every_stage():
    config = run((10, {"global_batch_size": 20}), (None, {}), eval_iters=4)
    message = refused(config)
    assert "stages[0]" in message and "train.eval_iters=4" in message
    assert message.endswith("make train.eval_iters a multiple of 5")
    first, last = run((10, {"global_batch_size": 20}), (None, {}), eval_iters=5).resolve(1)
    assert (first.eval_iters, last.eval_iters) == (2, 5)
    assert run((10, {"global_batch_size": 20}), (None, {}), eval_iters=0).resolve(1)


def test_positions_are_checked_against_each_stages_length():
    small = replace(MODEL, max_position_embeddings=8)
    message = refused(run((10, {"seq_length": 8}), (None, {}), model=small))
    assert message.startswith("stages[1]") and "seq_length=16" in message
    assert run((10, {"seq_length": 4}), (None, {"seq_length": 8}), model=small).resolve(1)
    few = StageSection(until=10, train={"seq_length": 8}, model={"max_position_embeddings": 8})
    grown = StageSection(grow=GrowSection(positions="copy"))
    assert RunConfig(model=MODEL, train=TRAIN, stages=[few, grown]).resolve(1)
    few.train["seq_length"] = 16
    assert "stages[0]" in refused(RunConfig(model=MODEL, train=TRAIN, stages=[few, grown]))


def test_sequence_parallelism_is_checked_against_each_stages_length():
    cut = layout(tp=2, sequence_parallel=True)
    short = StageSection(until=10, train={"seq_length": 1}, parallel=cut)
    message = refused(RunConfig(model=MODEL, train=TRAIN, stages=[short, StageSection()]), 2)
    assert "stages[0]" in message and "seq_length=1 " in message


def test_a_run_file_round_trips(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(run((10, {"seq_length": 8, "global_batch_size": 16}), (None, {}))))
    config = parse_run(["--config", str(path)])
    assert [s.batch.describe() for s in config.resolve(1)] == ["16 x 8", "8 x 16"]
    assert parse_run(["--config", str(path), "--stages", "[]"]).resolve(1)[0].batch == TRAIN.batch
