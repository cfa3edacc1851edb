"""Stages that end by a rule: what they resolve to, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_grow.config.run import RunConfig, parse_run, to_yaml
from megatron_grow.config.sections import TrainSection
from megatron_grow.config.stages import Stage, StageSection
from megatron_grow.config.timing import can_end, ended, most_tokens, next_end
from megatron_grow.config.until import StageRule
from megatron_grow.cost.flops import flops_at_step
from megatron_grow.inputs.errors import UserError
from tests.toy import MODEL

TRAIN = TrainSection(
    train_iters=40, seq_length=16, global_batch_size=8, micro_batch_size=1, eval_interval=5,
    eval_iters=6,
)  # fmt: skip
BELOW = {"rule": "loss_below", "loss": 2.5}


def run(*untils: Any, batches: tuple[dict[str, Any], ...] = ()) -> RunConfig:
    """Stages of one model that end so; ``batches``: their ``train``."""
    given = [*batches, *[{}] * len(untils)]
    stages = [StageSection(until=u, train=b) for u, b in zip(untils, given, strict=False)]
    return RunConfig(model=MODEL, train=TRAIN, stages=stages)


def refused(*untils: Any) -> str:
    with pytest.raises(UserError) as error:
        run(*untils).resolve(1)
    assert "\n" not in str(error.value)
    return str(error.value)


def steps(stages: list[Stage]) -> list[tuple[int, int]]:
    return [(stage.first_step, stage.last_step) for stage in stages]


def test_a_stage_is_as_long_as_it_can_be_until_its_end_is_known() -> None:
    until = {**BELOW, "at_most": 0.5, "at_least": 10, "every": 2}
    stages = run(until, 30, None).resolve(1)
    assert steps(stages) == [(0, 20), (20, 30), (30, 40)]
    assert [stage.rule for stage in stages] == [
        StageRule(BELOW, every=2, first_step=10),
        None,
        None,
    ]
    assert stages[0].rule.name == "loss_below"


def test_by_default_the_rule_is_asked_with_each_evaluation_from_the_start() -> None:
    [stage, _] = run({**BELOW, "at_most": 20}, None).resolve(1)
    assert stage.rule == StageRule(BELOW, every=5, first_step=0)


def test_a_known_end_moves_what_comes_after() -> None:
    fixed = run(13, 30, None).resolve(1)
    stages = run({**BELOW, "at_most": 0.5}, 30, None).resolve(1)
    assert ended(stages, 0, 13) == fixed
    assert [flops_at_step(ended(stages, 0, 13), s, "total") for s in (12, 25, 40)] == [
        flops_at_step(fixed, s, "total") for s in (12, 25, 40)
    ]
    two = run(13, {**BELOW, "at_most": 30}, None).resolve(1)
    assert steps(ended(two, 1, 14)) == [(0, 13), (13, 14), (14, 40)]


def test_a_stage_ends_where_all_later_ones_begin_at_a_sequence() -> None:
    """3 x 4 = 12 tokens a step; sequences of 16 begin at every fourth step."""
    odd = {"seq_length": 4, "global_batch_size": 3}
    stages = run({**BELOW, "at_most": 20}, None, batches=(odd,)).resolve(1)
    assert [step for step in range(22) if can_end(stages, 0, step)] == [4, 8, 12, 16, 20]
    assert [next_end(stages, 0, step) for step in (5, 8, 17, 20)] == [8, 8, 20, 20]
    # The stage between takes any beginning, 4 x 4 = 16 tokens a step; the last needs 12 k of 16.
    even = {"seq_length": 4, "global_batch_size": 4}
    three = run({**BELOW, "at_most": 20}, 30, None, batches=(odd, even)).resolve(1)
    assert [step for step in range(22) if can_end(three, 0, step)] == [4, 8, 12, 16, 20]
    assert not can_end(three, 1, 20) and can_end(three, 1, 21)


def test_most_tokens_bounds_every_end() -> None:
    small, large = {"global_batch_size": 4}, {"global_batch_size": 12}
    rule = {**BELOW, "at_most": 20}
    for batches in ((small, {}), (large, {}), (small, large), (large, small)):
        stages = run(10, rule, {**rule, "at_most": 30}, None, batches=({}, *batches)).resolve(1)
        totals = [
            ended(ended(stages, 1, first), 2, second)[-1].tokens_at(40)
            for first in range(11, 21)
            for second in range(max(21, first + 1), 31)
        ]
        assert max(totals) <= most_tokens(stages)
    # Ten steps of 8 x 16, thirty of the largest batch that can come.
    assert most_tokens(stages) == 10 * 8 * 16 + 30 * 12 * 16
    fixed = run(10, 20, None, batches=(large, small)).resolve(1)
    assert most_tokens(fixed) == 10 * 12 * 16 + 10 * 4 * 16 + 20 * 8 * 16


def test_a_method_may_end_a_stage_where_there_is_no_rule() -> None:
    """Whatever ``eval_interval`` is: nobody is asked."""
    config = run({"at_most": 4}, None)
    config.stages[0].methods = ["extend:OneThatEndsIt"]
    [stage, _] = config.resolve(1)
    assert stage.last_step == 4 and stage.rule == StageRule({}, every=5)
    assert stage.rule.name == "a method"


def test_without_a_rule_nothing_is_bounded() -> None:
    stages = run(10, None).resolve(1)
    assert [stage.rule for stage in stages] == [None, None]
    assert most_tokens(stages) == stages[-1].tokens_at(40) == 40 * 8 * 16


def test_a_rule_may_see_validation_losses() -> None:
    stages = run({**BELOW, "at_most": 20, "losses": "validation"}, None).resolve(1)
    assert stages[0].rule == StageRule(BELOW, every=5, validation=True)
    config = run({**BELOW, "at_most": 20, "losses": "validation"}, None)
    config.train = replace(TRAIN, eval_iters=0)
    with pytest.raises(UserError, match=r"^stages\[0\]\.until\.losses=validation needs eval"):
        config.resolve(1)


RULE = {**BELOW, "at_most": 0.5}
REFUSED: dict[str, tuple[Any, ...]] = {
    "stages[0].until.at_most is missing": (BELOW, None),
    "stages[0].until.rule is missing, and no method of the stage could": ({"at_most": 0.5}, None),
    "stages[0].until.rule is missing, for which loss, every would be, as in {rule: loss_slope": (
        {"loss": 3.0, "every": 5, "at_most": 0.5}, None,
    ),
    "stages[0].until.at_most is missing: where": ({}, None),
    "stages[0].until.at_most=1.5 must be a fraction of at most 1.0 or an integer step": (
        {**BELOW, "at_most": 1.5}, None,
    ),
    "stages[0].until.at_most=-3 must be more than 0": ({**BELOW, "at_most": -3}, None),
    "stages[0].until.at_most=x must be one of int, float": ({**BELOW, "at_most": "x"}, None),
    "stages[0].until.every=0 must be at least 1": ({**RULE, "every": 0}, None),
    "stages[0].until.losses=test must be one of 'training', 'validation'": (
        {**RULE, "losses": "test"}, None,
    ),
    "stages[0].until.every=20: the rule is never asked": ({**RULE, "every": 20}, None),
    "stages[0].until.every=10: the rule is never asked; a multiple of it must lie between step 11 "
    "and at_most=0.5, step 20": ({**RULE, "every": 10, "at_least": 11}, None),
    "stages[1].until.every=5: the rule is never asked; a multiple of it must lie between step 11 "
    "and at_most=14, step 14": (10, {**RULE, "at_most": 14}, None),
    "stages[0].until.at_least=0.5 is step 20; it must lie before at_most=0.5, step 20": (
        {**RULE, "at_least": 0.5}, None,
    ),
    "stages[0].until.at_most=50 is step 50; it must lie after step 0": (
        {**BELOW, "at_most": 50}, None,
    ),
    "the end of stages[1] is step 40; it must lie after step 40, where stages[0] ends at the lat":
        ({**RULE, "at_most": 1.0}, None),
    "stages[1].until=15 is step 15; it must lie after step 20, where stages[0] ends at the latest,":
        (RULE, 15, None),
    "stages[1].until={'rule': 'loss_below', 'loss': 2.5, 'at_most': 0.5}: the last stage ends at "
    "train_iters=40; leave it out": (10, RULE),
}  # fmt: skip


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_is_refused(said: str) -> None:
    assert refused(*REFUSED[said]).startswith(said)


def test_advice_on_a_bound_names_the_bound() -> None:
    config = run(
        {**RULE, "at_most": 10}, None, batches=({"seq_length": 4, "global_batch_size": 3},)
    )
    with pytest.raises(UserError, match=r"stages\[0\]\.until\.at_most=10 could be 8 or 12$"):
        config.resolve(1)


def test_a_run_file_round_trips(tmp_path) -> None:
    until = {**RULE, "at_least": 3}
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(replace(run(until, None))))
    config = parse_run(["--config", str(path)])
    assert config.stages[0].until == until
    assert config.resolve(1) == run(until, None).resolve(1)
