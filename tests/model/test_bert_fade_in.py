"""Masked growth of a BERT: it begins with the old function, in post-norm as in pre-norm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.methods.fade_in import Masks
from tests.bert import BERT, bert, micro_batches
from tests.distributed import run_ranks
from tests.toy import begin, grow, layout, loop_over, plan_of, run_config

SMALL: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "ffn_hidden_size": 64,
}
LARGE = replace(
    BERT, num_layers=4, hidden_size=48, num_attention_heads=8, kv_channels=8, ffn_hidden_size=96
)
MODELS = {
    "post": bert(LARGE),
    "pre": bert(LARGE, norm_position="pre"),
    "post, RMSNorm": replace(bert(LARGE), normalization="RMSNorm"),
}
LAYOUTS = {1: layout(), 4: layout(tp=2, pp=2, sequence_parallel=True)}


def run(model: ModelConfig, parallel: dict[str, Any]) -> RunConfig:
    return run_config(
        StageSection(until=3, model=SMALL, parallel=parallel),
        StageSection(parallel=parallel, grow=GrowSection(recipe="msg", mask_iters=0)),
        model=model,
        global_batch_size=4,
    )


def fade(world_size: int) -> dict[str, dict[str, Any]]:
    """On a rank, of each model: what is measured before the growth, masked, and without masks."""
    found: dict[str, dict[str, Any]] = {}
    for name, model in MODELS.items():
        config, seen = run(model, LAYOUTS[world_size]), {}
        live = begin(config, world_size)
        loop = loop_over(live, config)
        for _ in loop.steps(micro_batches(config, 0)):
            pass
        loop.end()
        seen["before"] = live.evaluate(micro_batches(config, 0), 1)
        live = grow(live, config, world_size)
        seen["plain"] = live.evaluate(micro_batches(config, 0), 1)
        masks = Masks(live.chunks, model, plan_of(config, world_size, 1).new_units)
        for strength in (0.0, 0.4, 1.0):
            masks.set(strength)
            seen[str(strength)] = live.evaluate(micro_batches(config, 0), 1)
        masks.remove()
        seen["removed"] = live.evaluate(micro_batches(config, 0), 1)
        live.release()
        found[name] = seen
    return found


@pytest.fixture(scope="module")
def found() -> dict[int, dict[str, dict[str, Any]]]:
    return {size: run_ranks(size, fade, size)[-1] for size in LAYOUTS}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("ranks", LAYOUTS)
def test_begins_with_the_old_function_and_ends_as_a_plain_model(
    ranks: int, name: str, found: dict[int, dict[str, dict[str, Any]]]
) -> None:
    seen = found[ranks][name]
    assert seen["0.0"] == pytest.approx(seen["before"], rel=2e-6)
    assert seen["1.0"] == pytest.approx(seen["plain"], rel=2e-6)
    assert seen["removed"] == seen["plain"]
    for loss in ("masked_lm_loss", "sentence_loss"):
        for other in ("before", "plain"):
            assert abs(seen["0.4"][loss] - seen[other][loss]) > 1e-4
        assert abs(seen["plain"][loss] - seen["before"][loss]) > 1e-3
