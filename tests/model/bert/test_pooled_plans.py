"""What plans say of tokens that share places, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.config.stages import StageSection, resolve_stages
from megatron_grow.growth.plan import Plan, growth
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import architecture_of
from megatron_grow.state.maps import identity
from tests.bert import BERT, bert
from tests.toy import MODEL


def _plan(before: int, after: int) -> Plan:
    return growth(
        bert(pool_size=before), bert(pool_size=after), None, target_depth=4, seed=1, where="here"
    )


def test_longer_sequences_keep_all_state_and_change_the_function():
    """Without any operator; said in the summary, and as why the function changes."""
    plan = _plan(4, 2)
    for key, tensor in plan.tensors.items():
        for kind in ("main_param", "exp_avg", "exp_avg_sq"):
            assert plan.map(key, kind).terms == identity(tensor).terms
    fewer = "pool_size: 4 -> 2 tokens in a place"
    assert plan.summary == f"the same model; {fewer}"
    assert plan.caveats == plan.caveats_masked == (fewer,)


def test_with_operators_both_are_said():
    """Depth, feed-forward and length in one growth."""
    source = replace(bert(pool_size=2), num_layers=2, ffn_hidden_size=32)
    grow = GrowSection(recipe="compound_grow")
    plan = growth(source, bert(), grow, target_depth=4, seed=1)
    assert plan.optimizer_state == "reset"
    assert plan.summary == (
        "2 -> 4 layers by copying_stack, 32 -> 64 ffn_hidden_size by hypercloning; "
        "pool_size: 2 -> 1 tokens in a place"
    )
    assert len(plan.caveats) == 2


def test_the_same_length_says_nothing():
    """As any growth does."""
    assert _plan(2, 2).caveats == ()


def test_sequences_do_not_shrink():
    """One line."""
    with pytest.raises(UserError, match=r"^here: model\.options\.pool_size=4 is more than the 2 b"):
        _plan(2, 4)


def test_a_causal_model_has_none():
    """It says why."""
    with pytest.raises(UserError, match=r"pool_size is not an option of gpt: a causal model pred"):
        architecture_of(replace(MODEL, options={"pool_size": 2}))


def test_the_first_layer_is_in_the_first_pipeline_stage():
    """What the stages send each other is of one length; without layers, or pooling, no matter."""
    layout = ParallelConfig(
        pipeline_model_parallel_size=2, pipeline_model_parallel_layout="E|ttttL"
    )
    stage = resolve_stages([StageSection()], BERT, layout, TrainSection(seq_length=16))[0]
    with pytest.raises(UserError, match=r"^stages\[0\]: model\.options\.pool_size=2: .*first pipe"):
        architecture_of(bert(pool_size=2)).check(stage, TrainSection(), "stages[0]")
    architecture_of(BERT).check(stage, TrainSection(), "stages[0]")
