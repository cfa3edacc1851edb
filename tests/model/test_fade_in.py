"""Masked growth: nothing changes at the growth, nothing is left at the end, on any layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import GrowSection, StageSection
from megatron_grow.growth.plan import growth
from megatron_grow.model.fade_in import FadeIn
from tests.distributed import run_ranks
from tests.logits import agreed, logits
from tests.toy import MODEL, Trace, begin, grow, layout, run_config, train_stage

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
MODELS = {"GPT-2": GPT2, "LLaMA": LLAMA}
TP2_PP2 = layout(tp=2, pp=2, sequence_parallel=True)
LAYOUTS = {1: (layout(), layout()), 4: (layout(tp=2), TP2_PP2)}
STRENGTHS = (0.0, 0.3, 1.0)


def run(model: ModelConfig, world_size: int) -> RunConfig:
    before, after = LAYOUTS[world_size]
    return run_config(
        StageSection(until=3, model=SMALL, parallel=before),
        # No masks of its own: the test sets them.
        StageSection(parallel=after, grow=GrowSection(recipe="msg", mask_iters=0)),
        model=model,
        global_batch_size=4,
    )


Found = dict[str, np.ndarray | None]


def fade(name: str, world_size: int) -> Found:
    """On a rank: logits before the growth, under masks of some strengths, and without any."""
    config = run(MODELS[name], world_size)
    live = begin(config, world_size)
    train_stage(live, config, Trace())
    found: Found = {"before": logits(live)}
    before, after = config.resolve(world_size)
    plan = growth(before.model, after.model, GrowSection(recipe="msg"), target_depth=4, seed=1)
    live = grow(live, config, world_size)
    found["plain"] = logits(live)
    masks = FadeIn(live.chunks, after.model, plan.fading_in)
    for strength in STRENGTHS:
        masks.set(strength)
        found[str(strength)] = logits(live)
    masks.remove()
    found["removed"] = logits(live)
    live.release()
    return found


@pytest.fixture(scope="module", params=MODELS)
def found(request: pytest.FixtureRequest) -> dict[int, dict[str, np.ndarray]]:
    sides: dict[int, dict[str, np.ndarray]] = {}
    for world_size in LAYOUTS:
        ranks = run_ranks(world_size, fade, request.param, world_size)
        sides[world_size] = {key: agreed(rank[key] for rank in ranks) for key in ranks[0]}
    return sides


@pytest.mark.parametrize("world_size", LAYOUTS)
def test_begins_with_the_old_function_and_ends_as_a_plain_model(
    world_size: int, found: dict[int, dict[str, np.ndarray]]
) -> None:
    seen = found[world_size]
    close = {"rel": 1e-5, "abs": 1e-6}
    assert seen["0.0"] == pytest.approx(seen["before"], **close)
    assert seen["1.0"] == pytest.approx(seen["plain"], **close)
    assert np.array_equal(seen["removed"], seen["plain"])
    for other in ("before", "plain"):
        assert np.abs(seen["0.3"] - seen[other]).max() > 1e-3
    assert np.abs(seen["plain"] - seen["before"]).max() > 1e-2


def test_masks_do_not_depend_on_the_layout(found: dict[int, dict[str, np.ndarray]]) -> None:
    # Three steps of Adam lie before, which turn a rounding of a small gradient into one of 1e-4.
    assert found[4]["0.3"] == pytest.approx(found[1]["0.3"], abs=3e-4)
