"""New units of a BERT fade in: norms of the residual stream, and the units of its heads, too."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.live.stage import LiveStage
from megatron_grow.methods import methods_of
from megatron_grow.methods.fade_in import Masks
from tests.bert import BERT, bert, micro_batches
from tests.distributed import run_ranks
from tests.toy import begin, grow, layout, loop_over, plan_of, run_config

SMALL: dict[str, Any] = {
    "num_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "ffn_hidden_size": 24,
}
LAYOUTS = {1: layout(), 2: layout(tp=2, sequence_parallel=True)}


def run(norms: str, ranks: int) -> RunConfig:
    model = bert(replace(BERT, kv_channels=8), norm_position=norms)
    return run_config(
        StageSection(until=2, model=SMALL, parallel=LAYOUTS[ranks]),
        StageSection(parallel=LAYOUTS[ranks], grow=GrowSection(recipe="msg", mask_iters=9)),
        model=model,
        train_iters=4,
        global_batch_size=4,
    )


def losses(live: LiveStage, config: RunConfig) -> list[float]:
    """Of both heads."""
    found = live.evaluate(micro_batches(config, 0), 1)
    assert found is not None
    return [found["masked_lm_loss"], found["sentence_loss"]]


def fade(norms: str, ranks: int) -> dict[str, list[float]]:
    """On a rank: losses before the growth, under masks of some strengths, and without any."""
    config = run(norms, ranks)
    live = begin(config, ranks)
    for _ in loop_over(live, config).steps(micro_batches(config, 0)):
        pass
    found = {"before": losses(live, config)}
    live, plan = grow(live, config, ranks), plan_of(config, ranks, 1)
    assert plan.caveats_masked == ()
    assert methods_of(live.stage, config, plan)  # which are checked here
    found["plain"] = losses(live, config)
    masks = Masks(live.chunks, live.stage.model, plan.new_units)
    for strength in (0.0, 0.3, 1.0):
        masks.set(strength)
        found[str(strength)] = losses(live, config)
    masks.remove()
    live.release()
    return found


def fade_all(ranks: int) -> list[dict[str, list[float]]]:
    """On a rank: a model of each kind."""
    return [fade(norms, ranks) for norms in ("post", "pre")]


@pytest.mark.parametrize("ranks", LAYOUTS)
def test_begins_with_the_old_function_and_ends_as_a_plain_model(ranks: int) -> None:
    for seen in chain(*run_ranks(ranks, fade_all, ranks)):
        assert seen["0.0"] == pytest.approx(seen["before"], rel=2e-6)
        assert seen["1.0"] == pytest.approx(seen["plain"], rel=2e-6)
        # New weights are small, but not that small.
        for one, other in (("0.3", "before"), ("0.3", "plain"), ("before", "plain")):
            for ours, theirs in zip(seen[one], seen[other], strict=True):
                assert abs(ours / theirs - 1) > 2e-5
