"""Which layers are told to die, by rows of literal numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.config.stages import StageSection
from megatron_grow.train.dying_layers import DyingLayers, Watched, watched
from tests.bert import BERT
from tests.growth.test_experts import EXPERTS
from tests.toy import MODEL, plan_of, run_config

MLP_GAIN = "decoder.layers.mlp.linear_fc1.layer_norm_weight"
FC1 = "decoder.layers.mlp.linear_fc1.weight"
ALL_NEW = frozenset(range(6))


def rows(gains: list[list[Any]], updates: list[list[Any]]) -> list[dict[str, Any]]:
    """Every 100 steps."""
    return [
        {"step": 100 * n, "gain": {MLP_GAIN: gain}, "update": {FC1: update}}
        for n, (gain, update) in enumerate(zip(gains, updates, strict=True), start=1)
    ]


def told(tensor: Watched, rows: list[dict[str, Any]], share: float = 0.3) -> list[list[Any]]:
    rule = DyingLayers([tensor], share)
    return [[tuple(each) for each in rule.observe(row)] for row in rows]


EVEN = [0.01] * 6


def test_the_gains_of_a_run_from_zero_layers() -> None:
    """As measured at the end under AdamW at init 0.02; on the way there, halved row by row."""
    fallen = [0.86, 0.19, 0.09, 0.09, 0.14, 0.49]
    gains = [[1.0] * 6, [0.95, 0.5, 0.4, 0.4, 0.45, 0.8], fallen, fallen, fallen, fallen]
    found = told(Watched("gain", MLP_GAIN, ALL_NEW), rows(gains, [EVEN] * 6))
    dying = ("gain", MLP_GAIN, [1, 2, 3, 4], [0.19, 0.09, 0.09, 0.14], 300)
    assert found == [[], [], [], [], [dying], []], "once, in the third row"


DEAD = [
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    [1.06, 0.85, 0.71, 0.58, 0.5, 0.47, 0.44, 0.45, 0.48, 0.52, 0.61, 0.77],
    [1.09, 0.84, 0.65, 0.49, 0.39, 0.36, 0.33, 0.34, 0.38, 0.43, 0.54, 0.75],
    [1.09, 0.84, 0.64, 0.47, 0.37, 0.34, 0.31, 0.32, 0.36, 0.41, 0.53, 0.74],
]
"""`dying_zero` of docs/study/gpt.md: where these are least, a branch adds 0.003 of the stream."""
ALIVE = [
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    [1.15, 0.93, 0.89, 0.85, 0.86, 0.84, 0.82, 0.81, 0.8, 0.79, 0.8, 0.79],
    [1.17, 0.91, 0.86, 0.83, 0.84, 0.82, 0.81, 0.8, 0.79, 0.76, 0.78, 0.78],
    [1.18, 0.9, 0.86, 0.82, 0.84, 0.82, 0.8, 0.8, 0.78, 0.76, 0.78, 0.78],
]
"""`zero_2000`."""


@pytest.mark.parametrize(("gains", "layers"), [(DEAD, [5, 6, 7, 8]), (ALIVE, None)])
def test_the_default_tells_dead_from_alive(
    gains: list[list[float]], layers: list[int] | None
) -> None:
    found = told(
        Watched("gain", MLP_GAIN, frozenset(range(12))),
        rows(gains, [EVEN] * 4),
        TrainSection().dying_share,
    )
    assert [each[2] for row in found for each in row] == ([layers] if layers else [])


def test_gains_that_all_layers_lose_are_not_told() -> None:
    """Layers 0 and 1 were there before."""
    fallen = [0.5, 0.1, 0.2, 0.2, 0.2, 0.05]
    gains = [[2.0, 0.4, 1.0, 1.0, 1.0, 1.0], *[fallen] * 3]
    found = told(Watched("gain", MLP_GAIN, ALL_NEW - {0, 1}), rows(gains, [EVEN] * 4))
    # The old ones have a quarter of what they had; the new a fifth, and the last a twentieth.
    assert found == [[], [], [], [("gain", MLP_GAIN, [5], [pytest.approx(0.2)], 200)]]


def test_updates_are_beside_those_of_old_layers() -> None:
    updates = [[0.01, 0.03, 0.001, 0.02, 0.001, 0.001]] * 3
    found = told(Watched("update", FC1, frozenset({3, 4, 5})), rows([[1.0] * 6] * 3, updates))
    assert found[:2] == [[], []]
    assert found[2] == [("update", FC1, [4, 5], pytest.approx([0.1, 0.1]), 100)]


def test_updates_are_beside_all_where_no_layer_is_old() -> None:
    updates = [[0.01, 0.03, 0.001, 0.02, 0.01, 0.01]] * 3
    found = told(Watched("update", FC1, ALL_NEW), rows([[1.0] * 6] * 3, updates))
    assert found[2] == [("update", FC1, [2], [pytest.approx(0.1)], 100)]


def test_a_layer_that_recovers_begins_anew() -> None:
    low, sound = [[1.0] * 5 + [0.1]], [[1.0] * 6]
    gains = [*sound, *low, *low, *sound, *low, *low, *low, *sound, *low, *low, *low]
    found = told(Watched("gain", MLP_GAIN, ALL_NEW), rows(gains, [EVEN] * len(gains)))
    assert [len(each) for each in found] == [0] * 6 + [1] + [0] * 4
    assert found[6][0][-1] == 500


def test_what_is_frozen_or_not_there_is_not_told() -> None:
    updates = [[0.01, None, 0.0, 0.01, 0.01, 0.01]] * 5
    found = told(Watched("update", FC1, ALL_NEW), rows([[1.0] * 6] * 5, updates))
    assert found == [[]] * 5


def test_a_share_of_0_tells_nothing() -> None:
    gains = [[1.0] * 6, *[[1.0] * 5 + [1e-9]] * 5]
    found = told(Watched("gain", MLP_GAIN, ALL_NEW), rows(gains, [EVEN] * 6), share=0.0)
    assert found == [[]] * 6


# What is watched


def of(model: Any, before: dict[str, Any], grow: dict[str, Any]) -> dict[str, Watched]:
    config: RunConfig = run_config(
        StageSection(until=5, model=before), StageSection(grow=GrowSection(**grow)), model=model
    )
    assert watched(plan_of(config, 1, 0)) == [], "nothing is new where all is"
    return {each.key: each for each in watched(plan_of(config, 1, 1))}


def test_new_layers_of_each_matrix_and_of_each_norm_before_a_branch() -> None:
    found = of(MODEL, {"num_layers": 2}, {"depth": "copying_inter"})
    matrices = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1")
    assert found == {
        f"decoder.layers.{name}": Watched(signal, f"decoder.layers.{name}", frozenset({1, 3}))
        for signal, names in (
            ("update", [f"{name}.weight" for name in (*matrices, "mlp.linear_fc2")]),
            ("gain", [f"{name}.layer_norm_weight" for name in matrices[::2]]),
        )
        for name in names
    }


def test_from_zero_layers_all_are_new() -> None:
    found = of(MODEL, {"num_layers": 0}, {"depth": "random"})
    assert {each.new for each in found.values()} == {frozenset(range(4))}


def test_norms_of_the_stream_itself_are_not_watched() -> None:
    found = of(BERT, {"num_layers": 2}, {"depth": "copying_stack"})
    assert {each.signal for each in found.values()} == {"update"}


def test_without_new_layers_nothing_is_watched() -> None:
    assert of(MODEL, {"ffn_hidden_size": 32}, {"ffn": "random"}) == {}


def test_layers_that_are_not_alike_have_the_numbers_of_the_model() -> None:
    sparse = {"experts": 4, "dense_layers": 1}
    model = replace(EXPERTS, num_layers=4, options=sparse)
    found = of(model, {"num_layers": 2}, {"depth": "copying_stack"})
    assert found["decoder.layers.mlp.router.weight"].new == {2, 3}
