"""Every operator, and every pair of operators of different axes, against the papers' formulas."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.growth.plan import growth, initialisation
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators import OPERATORS
from megatron_grow.state.kinds import MAIN_PARAM
from tests.growth.algebra import GPT2, LLAMA, applied, grown_model, weights_of
from tests.operators.cases import GROWTHS, MODELS, Growth, pairs
from tests.operators.formulas import Net, unpacked

SEED, DEEPEST = 3, 9
INITIAL: dict[Any, Net] = {}


def unique(model: ModelConfig) -> ModelConfig:
    """A model of its unique layers alone: what is stored of it."""
    return replace(model, num_layers=model.num_unique_layers, layer_sharing=None)


def check(kind: str, growths: dict[str, Growth]) -> None:
    """What the plan makes is what the formulas make, one after the other."""
    source, sizes = MODELS[kind], {}
    net = unpacked(unique(source), weights_of(source))
    for growth_ in growths.values():
        sizes |= growth_.model
        net = growth_.make(net)
    target = grown_model(source, sizes)
    grow = GrowSection(**{key: growth_.spec for key, growth_ in growths.items()})
    plan = growth(source, target, grow, target_depth=DEEPEST, seed=SEED)
    made = unpacked(unique(target), applied(plan, source, weights_of(source), MAIN_PARAM))
    if target not in INITIAL:
        fresh = initialisation(target, DEEPEST, SEED)
        INITIAL[target] = unpacked(unique(target), applied(fresh, source, {}, MAIN_PARAM))
    assert set(made.arrays) == set(net.arrays)
    for name, expected in net.arrays.items():
        found, new = made.arrays[name], np.isnan(expected)
        assert found.shape == expected.shape, name
        assert np.allclose(found[~new], expected[~new], rtol=1e-12, atol=1e-14), name
        # What is drawn is as in a run that began with this shape, unless an operator wants zeros.
        as_begun = found[new] == INITIAL[target].arrays[name][new]
        assert (as_begun | (found[new] == 0.0)).all(), name


SINGLE = [
    (kind, key, name)
    for kind in MODELS
    for key, named in GROWTHS.items()
    for name, growth_ in named.items()
    if kind in growth_.on
]


@pytest.mark.parametrize(("kind", "key", "name"), SINGLE)
def test_an_operator(kind: str, key: str, name: str) -> None:
    check(kind, {key: GROWTHS[key][name]})


def test_aki_along_heads_by_hand() -> None:
    """One group of one query becomes two of two; each row of two layers is numbered."""
    source = replace(LLAMA, hidden_size=1, num_attention_heads=1, num_query_groups=1, kv_channels=2)
    target = replace(source, num_attention_heads=4, num_query_groups=2)
    plan = growth(source, target, GrowSection(heads="aki"), target_depth=2, seed=SEED)
    values = weights_of(source)
    key = "decoder.layers.self_attention.linear_qkv.weight"
    # Rows of the query, of the key, of the value.
    values[key] = torch.tensor(
        [[11, 12, 13, 14, 15, 16], [21, 22, 23, 24, 25, 26]], dtype=torch.float64
    )[..., None]
    made = applied(plan, source, values, MAIN_PARAM)[key][..., 0]
    own, above = [11, 12, 21, 22, 13, 14, 15, 16], [21, 22, 21, 22, 23, 24, 25, 26]
    assert made.tolist() == [own + above, above + above]


def test_mix_with_aki_by_hand() -> None:
    """The layers that are mixed are those of the wider model."""
    source = replace(LLAMA, hidden_size=1, ffn_hidden_size=1, activation="squared_relu")
    target = replace(source, num_layers=3, ffn_hidden_size=2)
    grow = GrowSection(ffn="aki", depth={"operator": "mix", "matrix": [[1, 0], [0.5, 0.5], [0, 1]]})
    plan = growth(source, target, grow, target_depth=3, seed=SEED)
    values = weights_of(source)
    key = "decoder.layers.mlp.linear_fc1.weight"
    values[key] = torch.tensor([[[1.0]], [[3.0]]], dtype=torch.float64)
    made = applied(plan, source, values, MAIN_PARAM)[key][..., 0]
    assert made.tolist() == [[1.0, 3.0], [2.0, 3.0], [3.0, 3.0]]


def test_none_is_left_out() -> None:
    """Every operator that a run file can name has a formula here."""
    for key, table in OPERATORS.items():
        assert {name.split(",")[0] for name in GROWTHS[key]} == set(table.builtin), key


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("key", GROWTHS)
def test_pairs(kind: str, key: str) -> None:
    """Those whose second operator grows ``key``."""
    for (first, one), (second, other) in pairs(kind):
        if second == key:
            try:
                check(kind, {first: GROWTHS[first][one], second: GROWTHS[second][other]})
            except Exception as error:
                raise AssertionError(f"{first}: {one} with {second}: {other}") from error


@pytest.mark.parametrize("key", ["heads", "ffn"])
def test_two_operators_of_one_axis(key: str) -> None:
    """Block-diagonal growth doubles heads and feed-forward units by itself."""
    target = grown_model(GPT2, GROWTHS["width"]["block_diagonal"].model)
    grow = GrowSection(**{"width": "block_diagonal", key: "hypercloning"})
    with pytest.raises(UserError, match=rf"grow.{key}=hypercloning.*block_diagonal.*leave it out"):
        growth(GPT2, target, grow, target_depth=2, seed=SEED)
