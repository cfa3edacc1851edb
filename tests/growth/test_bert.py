"""What growth does to what only a BERT has, in fp64: post-norm, its heads, its tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.growth.plan import Plan, growth
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.kinds import MAIN_PARAM
from tests.growth.algebra import (
    POST_NORM,
    PRE_NORM,
    TEXT,
    Weights,
    applied,
    loss_and_gradients,
    weights_of,
)
from tests.model import bert_reference

BIAS = "output_layer.bias"
POSITIONS = "embedding.position_embeddings.weight"
KINDS = {"pre-norm": PRE_NORM, "post-norm": POST_NORM}


def planned(source: ModelConfig, target: ModelConfig, **grow: Any) -> Plan:
    return growth(source, target, GrowSection(**grow), target_depth=9, seed=3)


def grown_by(source: ModelConfig, target: ModelConfig, **grow: Any) -> tuple[Plan, Weights]:
    plan = planned(source, target, **grow)
    return plan, applied(plan, source, weights_of(source), MAIN_PARAM)


def change(source: ModelConfig, target: ModelConfig, **grow: Any) -> tuple[Plan, float]:
    """Of both logits, relative to the largest."""
    plan, weights = grown_by(source, target, **grow)
    before, _ = loss_and_gradients(source, weights_of(source))
    after, _ = loss_and_gradients(target, weights)
    return plan, float((after - before).abs().max() / before.abs().max())


# Norms of the residual stream


def test_a_new_layer_in_post_norm_takes_over_the_norm_before_it() -> None:
    """The layer before ends with gain 1 and bias 0, as all norms between do."""
    source, norm = replace(POST_NORM, num_layers=1), "encoder.layers.mlp_bda.norm."
    weights = weights_of(source)
    _, grown = grown_by(source, replace(source, num_layers=3), depth="copying_zero")
    for name, one in (("weight", 1.0), ("bias", 0.0)):
        last, inside = grown[f"{norm}{name}"], grown[f"encoder.layers.self_attn_bda.norm.{name}"]
        assert torch.equal(last[2], weights[f"{norm}{name}"][0])
        assert (last[:2] == one).all()
        assert (inside[1:] == one).all()


def test_a_moved_norm_is_old_and_those_in_its_place_are_new() -> None:
    """For methods that hold old entries still, or let new ones warm up."""
    source = replace(POST_NORM, num_layers=1)
    weights = planned(source, replace(source, num_layers=3), depth="copying_zero").weights
    for name in ("weight", "bias"):
        last = weights[f"encoder.layers.mlp_bda.norm.{name}"]
        inside = weights[f"encoder.layers.self_attn_bda.norm.{name}"]
        assert last.old(0).tolist() == [False, False, True]
        assert inside.old(0).tolist() == [True, False, False]


def test_moved_norms_see_epsilon_twice() -> None:
    """Which the plan says where it shows in fp32: 1e-5 does, BERT's own 1e-12 does not."""
    source = replace(POST_NORM, layernorm_epsilon=1e-5)
    plan, changed = change(source, replace(source, num_layers=4), depth="zero")
    (caveat,) = plan.caveats
    assert "layernorm_epsilon=1e-05" in caveat
    assert 1e-9 < changed < 1e-4
    source = replace(POST_NORM, layernorm_epsilon=1e-12)
    plan, changed = change(source, replace(source, num_layers=4), depth="zero")
    assert plan.caveats == ()
    assert changed < 1e-10
    source = replace(PRE_NORM, layernorm_epsilon=1e-5)
    assert planned(source, replace(source, num_layers=4), depth="zero").caveats == ()


@pytest.mark.parametrize(
    ("layers", "depth"),
    [(0, "zero"), (2, {"operator": "explicit", "layers": [0, 0, 1], "zero": [0]})],
)
def test_no_norm_takes_back_what_that_of_the_embeddings_did(layers: int, depth: Any) -> None:
    for source, kept in ((PRE_NORM, True), (POST_NORM, False)):
        source = replace(source, num_layers=layers)
        plan, changed = change(source, replace(source, num_layers=layers + 1), depth=depth)
        assert (changed < 1e-12) == kept
        assert (plan.caveats == ()) == kept
        assert kept or (changed > 1e-3 and "no norm takes back" in plan.caveats[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operator", ["zero", "lemon"])
def test_padding_with_zeros_is_exact_under_rms_norm(operator: str, kind: str) -> None:
    """Which passes zeros on, the stream's too; behind a head's activation they are zeros still."""
    source = replace(KINDS[kind], normalization="RMSNorm", num_attention_heads=2)
    target = replace(source, hidden_size=11)
    epsilon = source.layernorm_epsilon * 8 / 11
    plan, changed = change(source, replace(target, layernorm_epsilon=epsilon), width=operator)
    assert plan.caveats == ()
    assert changed < 1e-12


# Tables: tokens, positions, types


@pytest.mark.parametrize("kind", KINDS)
def test_known_tokens_keep_their_logits_and_new_ones_begin_as_asked(kind: str) -> None:
    source = KINDS[kind]
    target, weights = replace(source, vocab_size=43), weights_of(source)
    before = bert_reference.logits(source, weights, TEXT).tokens
    for operator, bias in (("random", torch.zeros(3)), ("mean", weights[BIAS].mean().expand(3))):
        plan, grown = grown_by(source, target, vocab=operator)
        after = bert_reference.logits(target, grown, TEXT).tokens
        assert (after[..., :40] - before).abs().max() < 1e-12
        assert torch.allclose(grown[BIAS][40:], bias.double(), rtol=1e-14, atol=0)
        if operator == "mean":
            new = before.mean(-1, keepdim=True).expand(-1, -1, 3)
            assert torch.allclose(after[..., 40:], new, rtol=1e-11, atol=1e-12)
        assert plan.caveats == ("vocab: new tokens take part in the softmax",)


def test_a_smaller_vocabulary_keeps_the_logits_of_its_tokens() -> None:
    kept = [*range(20), 39, 38, 37]
    vocab = {"operator": "mapping", "tokens": kept}
    target = replace(POST_NORM, vocab_size=len(kept))
    _, grown = grown_by(POST_NORM, target, vocab=vocab)
    text = TEXT._replace(tokens=TEXT.tokens % 20)
    before = bert_reference.logits(POST_NORM, weights_of(POST_NORM), text).tokens
    after = bert_reference.logits(target, grown, text).tokens
    assert (after - before[..., kept]).abs().max() < 1e-12


def test_positions_before_the_first_stay_where_they_are() -> None:
    """RoBERTa's table has two rows that no token reads."""
    source = replace(POST_NORM, options={"first_position": 2}, max_position_embeddings=6)
    old = weights_of(source)[POSITIONS]
    target = replace(source, max_position_embeddings=10)
    _, copied = grown_by(source, target, positions="copy")
    assert torch.equal(copied[POSITIONS], old[[0, 1, 2, 3, 4, 5, 2, 3, 4, 5]])
    plan, stretched = grown_by(
        source, replace(source, max_position_embeddings=9), positions="interpolate"
    )
    middle = [old[2], (old[2] + old[3]) / 2, old[3], (old[3] + old[4]) / 2, old[4]]
    expected = torch.stack([*old[:2], *middle, (old[4] + old[5]) / 2, old[5]])
    assert torch.allclose(stretched[POSITIONS], expected, rtol=1e-14, atol=1e-15)
    assert plan.caveats == ("positions: positions are stretched",)
    text = bert_reference.Text(*(part[:, :4] for part in TEXT))
    for operator in ("copy", "random"):
        plan, grown = grown_by(source, target, positions=operator)
        said = [
            bert_reference.logits(model, weights, text, first_position=2).tokens
            for model, weights in ((source, weights_of(source)), (target, grown))
        ]
        assert torch.equal(*said)
        assert plan.caveats == ()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"token_types": 1}, {"token_types": 2}),
        ({"token_types": 0}, {"token_types": 2}),
        ({"sentence_head": "none"}, {"sentence_head": "next_sentence"}),
        ({"sentence_head": "next_sentence"}, {"sentence_head": "sentence_order"}),
        ({"norm_position": "pre"}, {"norm_position": "post"}),
        ({"first_position": 0}, {"first_position": 2}),
    ],
)
def test_what_no_growth_changes(before: dict[str, Any], after: dict[str, Any]) -> None:
    ((name, value),) = after.items()
    message = rf"^grow: model\.options\.{name}={value} differs from the {before[name]} before"
    with pytest.raises(UserError, match=message):
        planned(replace(POST_NORM, options=before), replace(POST_NORM, options=after))
