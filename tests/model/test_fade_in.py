"""Masked growth: nothing changes at the growth, nothing is left at the end, on any layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.growth.plan import growth
from megatron_grow.inputs.errors import UserError
from megatron_grow.methods import methods_of
from megatron_grow.methods.fade_in import Masks
from megatron_grow.model.architecture import Architecture
from megatron_grow.model.gpt.architecture import GPT
from megatron_grow.model.masks import MaskPoints
from megatron_grow.state.axes import FFN
from megatron_grow.state.tensors import LogicalTensor
from tests.distributed import run_ranks
from tests.logits import agreed, logits
from tests.toy import MODEL, Trace, begin, grow, layout, plan_of, run_config, train, train_stage

SMALL: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "ffn_hidden_size": 64,
}
GPT2 = replace(
    MODEL,
    hidden_size=48,
    kv_channels=8,
    num_attention_heads=12,
    num_query_groups=4,
    ffn_hidden_size=96,
)
LLAMA = replace(
    GPT2,
    normalization="RMSNorm",
    activation="swiglu",
    position_embedding_type="rope",
    add_bias_linear=False,
    share_embeddings_and_output_weights=False,
)
BUILTIN = {"GPT-2": GPT2, "LLaMA": LLAMA}
# By import path, from examples/extend: they say themselves where units are masked.
OWN = {
    "post-norms": replace(LLAMA, architecture="extend.post_norms:PostNorms"),
    "second MLP": replace(GPT2, architecture="extend.second_mlp:SecondMLP"),
}
MODELS = BUILTIN | OWN
TP2_PP2 = layout(tp=2, pp=2, sequence_parallel=True)
VPP2 = layout(pp=2, virtual_pipeline_model_parallel_size=2)
LAYOUTS = {
    "one rank": (1, layout(), layout()),
    "PP2 VPP2": (2, layout(), VPP2),
    "TP2 PP2": (4, layout(tp=2), TP2_PP2),
}
"""Ranks, and the layouts before and after the growth."""
STRENGTHS = (0.0, 0.3, 1.0)


def run(model: ModelConfig, where: str, mask_iters: int) -> RunConfig:
    _, before, after = LAYOUTS[where]
    return run_config(
        StageSection(until=3, model=SMALL, parallel=before),
        StageSection(parallel=after, grow=GrowSection(recipe="msg", mask_iters=mask_iters)),
        model=model,
        global_batch_size=4,
    )


Found = dict[str, np.ndarray | None]


def fade(name: str, where: str) -> Found:
    """On a rank: logits before the growth, under masks of some strengths, and without any."""
    world_size = LAYOUTS[where][0]
    config = run(MODELS[name], where, mask_iters=0)  # none of its own: they are set here
    live = begin(config, world_size)
    train_stage(live, config, Trace())
    found: Found = {"before": logits(live)}
    before, after = config.resolve(world_size)
    plan = growth(before.model, after.model, GrowSection(recipe="msg"), target_depth=4, seed=1)
    live = grow(live, config, world_size)
    found["plain"] = logits(live)
    masks = Masks(live.chunks, after.model, plan.new_units)
    for strength in STRENGTHS:
        masks.set(strength)
        found[str(strength)] = logits(live)
    masks.remove()
    found["removed"] = logits(live)
    live.release()
    return found


@pytest.fixture(scope="module", params=BUILTIN)
def found(request: pytest.FixtureRequest) -> dict[str, dict[str, np.ndarray]]:
    sides: dict[str, dict[str, np.ndarray]] = {}
    for where, (world_size, *_) in LAYOUTS.items():
        ranks = run_ranks(world_size, fade, request.param, where)
        sides[where] = {key: agreed(rank[key] for rank in ranks) for key in ranks[0]}
    return sides


def check(seen: dict[str, np.ndarray]) -> None:
    close = {"rel": 1e-5, "abs": 1e-6}
    assert seen["0.0"] == pytest.approx(seen["before"], **close)
    assert seen["1.0"] == pytest.approx(seen["plain"], **close)
    assert np.array_equal(seen["removed"], seen["plain"])
    for other in ("before", "plain"):
        assert np.abs(seen["0.3"] - seen[other]).max() > 1e-3
    assert np.abs(seen["plain"] - seen["before"]).max() > 1e-2


@pytest.mark.parametrize("where", LAYOUTS)
def test_begins_with_the_old_function_and_ends_as_a_plain_model(
    where: str, found: dict[str, dict[str, np.ndarray]]
) -> None:
    check(found[where])


@pytest.mark.parametrize("name", OWN)
def test_architectures_of_ones_own_say_where_units_are_masked(name: str) -> None:
    (seen,) = run_ranks(1, fade, name, "one rank")
    check(seen)


@dataclass(frozen=True)
class Unmasked(GPT):
    """One that does not say where."""

    mask_points = Architecture.mask_points


@dataclass(frozen=True)
class MoreTensors(GPT):
    """One that has more than a GPT, and masks what a GPT does."""

    def tensors(self, model: ModelConfig, target_depth: int | None) -> dict[str, LogicalTensor]:
        return super().tensors(model, target_depth)


@dataclass(frozen=True)
class MoreUnits(GPT):
    """One whose MLPs grow along an axis of their own."""

    def tensors(self, model: ModelConfig, target_depth: int | None) -> dict[str, LogicalTensor]:
        return {
            key: replace(
                tensor,
                axes=tuple(replace(a, rule=UNITS) if a.rule == FFN else a for a in tensor.axes),
            )
            for key, tensor in super().tensors(model, target_depth).items()
        }

    def mask_points(self, chunk: torch.nn.Module) -> MaskPoints:
        return super().mask_points(chunk)


UNITS = replace(FFN, name="units")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Unmasked", r"model\.architecture=.*Unmasked does not say"),
        ("MoreTensors", r"model\.architecture=.*MoreTensors does not say"),
        ("MoreUnits", "cannot mask new units of units"),
    ],
)
def test_an_architecture_that_does_not_say_where_is_refused(name: str, message: str) -> None:
    config = run(replace(GPT2, architecture=f"{__name__}:{name}"), "one rank", mask_iters=3)
    with pytest.raises(UserError, match=f"mask_iters:? {message}"):
        methods_of(config.resolve(1)[1], config, plan_of(config, 1, 1))


def test_masks_do_not_depend_on_the_layout(found: dict[str, dict[str, np.ndarray]]) -> None:
    # Three steps of Adam lie before, which turn a rounding of a small gradient into one of 1e-4.
    for where in LAYOUTS:
        assert found[where]["0.3"] == pytest.approx(found["one rank"]["0.3"], abs=3e-4)


def losses(where: str, mask_iters: int) -> list[float]:
    """On a rank: of all steps, while new units fade in over ``mask_iters`` of them."""
    return train(run(GPT2, where, mask_iters), LAYOUTS[where][0]).losses


def test_training_while_units_fade_in() -> None:
    """The same curve on every layout: gradients pass the masks as they should."""
    curves = {
        where: run_ranks(world_size, losses, where, 6)
        for where, (world_size, *_) in LAYOUTS.items()
    }
    expected = curves["one rank"][0]
    assert len(expected) == 20
    for ranks in curves.values():
        for found in ranks:
            assert found == pytest.approx(expected, rel=1e-5)
    (plain,) = run_ranks(1, losses, "one rank", 0)
    assert plain[:3] == expected[:3]
    assert abs(plain[3] - expected[3]) > 1e-3
