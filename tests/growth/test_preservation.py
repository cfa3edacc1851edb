"""Every operator against a GPT in plain PyTorch, in fp64: losses, and gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.growth.plan import growth
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.kinds import MAIN_PARAM
from tests.growth.algebra import (
    GPT2,
    LLAMA,
    MODELS,
    Case,
    applied,
    grown_model,
    loss_and_gradients,
    weights_of,
)

EPS = GPT2.layernorm_epsilon
FACTORS = {
    "softmax_scale": 0.3,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "logits_scaling": 5.0,
}
PRESERVING: dict[str, Case] = {
    "ffn fpi": Case({"ffn": "fpi"}, {"ffn_hidden_size": 20}),
    "ffn tiled": Case({"ffn": "hypercloning"}, {"ffn_hidden_size": 48}),
    "ffn lemon": Case({"ffn": "lemon"}, {"ffn_hidden_size": 31}),
    "ffn zero": Case({"ffn": "zero"}, {"ffn_hidden_size": 17}),
    "groups fpi": Case({"heads": "fpi"}, {"groups": 5}),
    "groups hypercloning": Case({"heads": "hypercloning"}, {"groups": 2.0}),
    "groups lemon": Case({"heads": "lemon"}, {"groups": 9}),
    "groups zero": Case({"heads": "zero"}, {"groups": 6}),
    "queries fpi": Case({"heads": "fpi"}, {"per_group": 5}),
    "queries zero": Case({"heads": "zero"}, {"per_group": 3}),
    "groups and queries": Case(
        {"heads": {"operator": "fpi", "map": "cyclic"}}, {"groups": 6, "per_group": 4}
    ),
    "head size": Case({"heads": "head_size"}, {"kv_channels": 8}),
    "width hypercloning": Case({"width": "hypercloning"}, {"hidden_size": 24}),
    "width fpi": Case({"width": {"operator": "fpi", "map": "cyclic"}}, {"hidden_size": 16}),
    "width block-diagonal": Case(
        {"width": "block_diagonal"}, {"hidden_size": 16, "groups": 2.0, "ffn_hidden_size": 24}
    ),
    "hypercloning": Case(
        {"recipe": "hypercloning"}, {"hidden_size": 16, "groups": 2.0, "ffn_hidden_size": 36}
    ),
    "staged": Case(
        {"recipe": "staged"},
        {"num_layers": 4, "hidden_size": 16, "groups": 2.0, "ffn_hidden_size": 24},
    ),
    "everything": Case(
        {"depth": "copying_zero", "width": "hypercloning", "heads": "zero", "ffn": "fpi"},
        {"num_layers": 5, "hidden_size": 16, "groups": 7, "ffn_hidden_size": 30},
    ),
    "noise": Case(
        {
            "width": {"operator": "hypercloning", "snr_db": 10},
            "ffn": {"operator": "hypercloning", "snr_db": 10},
        },
        {"hidden_size": 24, "ffn_hidden_size": 24},
        carries=False,
    ),
    "noise of heads": Case(
        {"heads": {"operator": "hypercloning", "snr_db": 10}, "depth": "copying_zero"},
        {"groups": 3.0, "per_group": 4, "num_layers": 3},
        carries=False,
    ),
    "lemon, random": Case(
        {
            "width": {"operator": "lemon", "split": "random"},
            "heads": {"operator": "lemon", "split": "random"},
            "ffn": {"operator": "lemon", "split": "random"},
        },
        {
            "hidden_size": 29,
            "groups": 2.0,
            "per_group": 5,
            "ffn_hidden_size": 40,
            "layernorm_epsilon": EPS * 24 / 29,
        },
        carries=False,
    ),
    # Along the hidden size, uneven shares and means go through a norm: moments follow roughly.
    "width lemon": Case(
        {"width": "lemon"},
        {"hidden_size": 21, "layernorm_epsilon": EPS * 16 / 21},
        carries=False,
    ),
    "lemon": Case(
        {"recipe": "lemon"},
        {
            "num_layers": 3,
            "hidden_size": 13,
            "groups": 5,
            "ffn_hidden_size": 20,
            "layernorm_epsilon": EPS * 8 / 13,
        },
        carries=False,
    ),
    "sparkling, whole factors": Case(
        {"width": "sparkling", "heads": "sparkling", "ffn": "sparkling"},
        {"hidden_size": 16, "groups": 3.0, "ffn_hidden_size": 48},
    ),
    "depth zero": Case({"depth": "zero"}, {"num_layers": 5}),
    "depth copying_zero": Case({"depth": "copying_zero"}, {"num_layers": 5}),
    "depth identity": Case({"depth": "identity"}, {"num_layers": 4}),
    "llama_pro": Case({"recipe": "llama_pro"}, {"num_layers": 3}),
    # Where the head is not tied before, there is nothing to untie.
    "untied": Case({}, {"share_embeddings_and_output_weights": False}, carries=False),
    "untied, wider": Case(
        {"recipe": "hypercloning"},
        {"share_embeddings_and_output_weights": False, "hidden_size": 24},
        carries=False,
    ),
    "untied, lemon": Case(
        {"width": "lemon", "depth": "copying_zero"},
        {
            "share_embeddings_and_output_weights": False,
            "hidden_size": 21,
            "num_layers": 3,
            "layernorm_epsilon": EPS * 16 / 21,
        },
        carries=False,
    ),
    # Factors in the function, for which weights make up.
    "multipliers": Case({}, FACTORS),
    "multipliers, untied": Case(
        {}, {**FACTORS, "share_embeddings_and_output_weights": False}, carries=False
    ),
    "multipliers, everything": Case(
        {"depth": "copying_zero", "width": "hypercloning", "heads": "zero", "ffn": "fpi"},
        {"num_layers": 5, "hidden_size": 16, "groups": 7, "ffn_hidden_size": 30, **FACTORS},
    ),
    "multipliers, head size": Case({"heads": "head_size"}, {"kv_channels": 8, **FACTORS}),
    "depth explicit": Case(
        {"depth": {"operator": "explicit", "layers": [0, -1, 1, 0], "zero": [1, 3]}},
        {"num_layers": 4},
    ),
}


# Padding with the mean meets what no padding can do; a zero norm of the stream would end it.
NOT_KEPT = {
    (name, kind): reason
    for name in ("width lemon", "lemon", "lemon, random", "untied, lemon")
    for kind, reason in (
        ("BERT, pre-norm", "behind an activation"),
        ("BERT, post-norm", "norms of the residual stream make it a constant"),
    )
}
REFUSED = [(name, "BERT, post-norm") for name in ("depth identity", "staged")]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for kind in MODELS
        for name in PRESERVING
        if (name, kind) not in NOT_KEPT and (name, kind) not in REFUSED
    ],
)
def test_function_and_gradients(name: str, kind: str) -> None:
    """Outputs to 1e-12; each tensor's gradient is what ``carry`` makes of the source's."""
    case, source = PRESERVING[name], MODELS[kind]
    target = grown_model(source, case.model)
    plan = growth(source, target, GrowSection(**case.grow), target_depth=9, seed=3)
    assert plan.caveats == ()
    weights = weights_of(source)
    losses, gradients = loss_and_gradients(source, weights)
    grown_losses, grown_gradients = loss_and_gradients(
        target, applied(plan, source, weights, MAIN_PARAM)
    )
    assert (grown_losses - losses).abs().max() < 1e-12 * losses.abs().max()
    if not case.carries:
        return
    carried = applied(plan, source, gradients, "exp_avg")
    squares = applied(plan, source, {k: g.square() for k, g in gradients.items()}, "exp_avg_sq")
    for key, gradient in grown_gradients.items():
        where = carried[key] != 0
        assert where.any() == (gradients[key].abs().max() > 0 if key in gradients else False)
        difference = (gradient - carried[key])[where]
        assert difference.abs().max() < 1e-11 * gradient.abs().max(), key
        assert torch.allclose(squares[key], carried[key].square(), rtol=1e-12, atol=0), key


@pytest.mark.parametrize(("name", "kind"), NOT_KEPT)
def test_where_an_operator_that_keeps_other_models_cannot(name: str, kind: str) -> None:
    case, source = PRESERVING[name], MODELS[kind]
    epsilon = source.layernorm_epsilon
    target = replace(grown_model(source, case.model), layernorm_epsilon=epsilon)
    plan = growth(source, target, GrowSection(**case.grow), target_depth=9, seed=3)
    assert any(NOT_KEPT[name, kind] in caveat for caveat in plan.caveats)
    weights = weights_of(source)
    values, _ = loss_and_gradients(source, weights)
    grown, _ = loss_and_gradients(target, applied(plan, source, weights, MAIN_PARAM))
    assert (grown - values).abs().max() > 1e-2 * values.abs().max()


@pytest.mark.parametrize(("name", "kind"), REFUSED)
def test_what_would_end_the_residual_stream_is_refused(name: str, kind: str) -> None:
    case, source = PRESERVING[name], MODELS[kind]
    with pytest.raises(
        UserError, match=r"^grow\.depth: identity .* post-norm .*; use copying_zero$"
    ):
        growth(
            source,
            grown_model(source, case.model),
            GrowSection(**case.grow),
            target_depth=9,
            seed=3,
        )


# What is not function-preserving says so before the run, and by how much is pinned here.

CHANGING: dict[str, tuple[Case, str, float]] = {
    "random ffn": (Case({"ffn": "random"}, {"ffn_hidden_size": 20}), "random", 1e-5),
    "random heads": (Case({"heads": "random"}, {"groups": 6}), "random", 1e-5),
    "uneven width": (Case({"width": "fpi"}, {"hidden_size": 12}), "statistics", 1e-2),
    "aki": (
        Case({"width": "aki", "ffn": "aki"}, {"hidden_size": 16, "ffn_hidden_size": 24}),
        "layer above",
        1e-2,
    ),
    "sparkling": (Case({"width": "sparkling"}, {"hidden_size": 12}), "RMS", 1e-2),
    "stack": (Case({"depth": "copying_stack"}, {"num_layers": 4}), "layers", 1e-2),
    "interpolated": (
        Case({"positions": "interpolate"}, {"max_position_embeddings": 12}),
        "stretched",
        1e-3,
    ),
}


@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.parametrize("kind", ["GPT-2", "BERT, pre-norm", "BERT, post-norm"])
def test_what_changes_the_function_says_so(name: str, kind: str) -> None:
    (case, reason, least), source = CHANGING[name], MODELS[kind]
    target = grown_model(source, case.model)
    plan = growth(source, target, GrowSection(**case.grow), target_depth=9, seed=3)
    assert any(reason in caveat for caveat in plan.caveats)
    weights = weights_of(source)
    losses, _ = loss_and_gradients(source, weights)
    grown, _ = loss_and_gradients(target, applied(plan, source, weights, MAIN_PARAM))
    assert (grown - losses).abs().max() > least * losses.abs().max()


def test_an_epsilon_that_does_not_follow_changes_little() -> None:
    target = replace(GPT2, hidden_size=12)
    plan = growth(GPT2, target, GrowSection(width="lemon"), target_depth=9, seed=3)
    assert any("layernorm_epsilon" in caveat for caveat in plan.caveats)
    weights = weights_of(GPT2)
    losses, _ = loss_and_gradients(GPT2, weights)
    grown, _ = loss_and_gradients(target, applied(plan, GPT2, weights, MAIN_PARAM))
    assert 1e-9 < (grown - losses).abs().max() / losses.abs().max() < 1e-4


def test_block_diagonal_takes_what_does_not_grow_once() -> None:
    """Gains over the size of a head were taken twice, once with each block."""
    source = replace(LLAMA, qk_layernorm=True)
    target = replace(
        source, hidden_size=16, num_attention_heads=8, num_query_groups=4, ffn_hidden_size=24
    )
    plan = growth(source, target, GrowSection(width="block_diagonal"), target_depth=2, seed=1)
    weights = weights_of(source)
    losses, _ = loss_and_gradients(source, weights)
    grown, _ = loss_and_gradients(target, applied(plan, source, weights, MAIN_PARAM))
    assert (grown - losses).abs().max() < 1e-12 * losses.abs().max()


def test_zero_padding_under_layer_norm_moves_the_mean() -> None:
    target = replace(GPT2, hidden_size=12)
    plan = growth(GPT2, target, GrowSection(width="zero"), target_depth=2, seed=1)
    assert any("mean" in caveat for caveat in plan.caveats)
    rms = replace(LLAMA, layernorm_epsilon=1e-5)
    padded = replace(rms, hidden_size=12, layernorm_epsilon=1e-5 * 8 / 12)
    assert growth(rms, padded, GrowSection(width="zero"), target_depth=2, seed=1).caveats == ()


@st.composite
def growths(draw: st.DrawFn) -> tuple[ModelConfig, ModelConfig, GrowSection]:
    """Any shape, grown by preserving operators along any of its axes."""
    base = MODELS[draw(st.sampled_from(sorted(MODELS)))]
    groups, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    source = replace(
        base,
        num_layers=draw(st.integers(1, 3)),
        # A LayerNorm over two values passes no gradient but through its epsilon: noise.
        hidden_size=draw(st.integers(4, 9)),
        kv_channels=2 * draw(st.integers(1, 3)),
        num_query_groups=groups,
        num_attention_heads=groups * per_group,
        ffn_hidden_size=draw(st.integers(1, 9)),
    )
    more = {key: draw(st.integers(0, 4)) for key in ("layers", "groups", "queries", "ffn")}
    factor = draw(st.integers(1, 3))
    grown_groups = groups + more["groups"]
    target = replace(
        source,
        num_layers=source.num_layers + more["layers"],
        hidden_size=source.hidden_size * factor,
        num_query_groups=grown_groups,
        num_attention_heads=grown_groups * (per_group + more["queries"]),
        ffn_hidden_size=source.ffn_size + more["ffn"],
    )
    units = st.sampled_from([{"operator": "fpi", "seed": draw(st.integers(0, 9))}, "lemon", "zero"])
    grow: dict[str, Any] = {}
    if more["layers"]:
        post_norm = base is MODELS["BERT, post-norm"]
        depths = ["zero", "copying_zero", *([] if post_norm else ["identity"])]
        grow["depth"] = draw(st.sampled_from(depths))
    if factor > 1:
        grow["width"] = draw(
            st.sampled_from(["hypercloning", {"operator": "fpi", "map": "cyclic"}])
        )
    if more["groups"] or more["queries"]:
        grow["heads"] = draw(units)
    if more["ffn"]:
        grow["ffn"] = draw(units)
    return source, target, GrowSection(**grow)


@settings(max_examples=30, deadline=None)
@given(growths())
def test_any_shape(case: tuple[ModelConfig, ModelConfig, GrowSection]) -> None:
    source, target, grow = case
    plan = growth(source, target, grow, target_depth=9, seed=3)
    assert plan.caveats == ()
    weights = weights_of(source)
    losses, gradients = loss_and_gradients(source, weights)
    grown, grown_gradients = loss_and_gradients(target, applied(plan, source, weights, MAIN_PARAM))
    assert (grown - losses).abs().max() < 1e-12 * losses.abs().max()
    carried = applied(plan, source, gradients, "exp_avg")
    # A gradient that cancels keeps the rounding errors of its terms, which are of the others' size.
    largest = max(float(gradient.abs().max()) for gradient in grown_gradients.values())
    for key, gradient in grown_gradients.items():
        difference = (gradient - carried[key])[carried[key] != 0]
        scale = max(float(gradient.abs().max()), 1e-3 * largest)
        assert not len(difference) or difference.abs().max() < 1e-11 * scale, key
