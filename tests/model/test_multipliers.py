"""The factors of a model's function: against plain PyTorch, which has them in its own places, and
folded into weights by a growth, which then leaves live models as they were."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import StageSection
from tests import bert
from tests.distributed import run_ranks
from tests.model.test_gpt import LLAMA, MODELS, PP2, SP2, TP2, VPP2, _check, _run
from tests.toy import begin, grow, layout, run_config

FACTORS = {
    "softmax_scale": 0.4,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.3,
    "logits_scaling": 2.5,
}
TIED, UNTIED = MODELS["GPT-2"], LLAMA
CASES = {
    "tied": (TIED, (1, layout())),
    "tied, TP2 SP": (TIED, SP2),
    "tied, PP2": (TIED, PP2),
    "untied, TP2": (UNTIED, TP2),
    "untied, PP2 VPP2": (UNTIED, VPP2),
    "post-norms, TP2 SP": (MODELS["post-norms"], SP2),
    "second MLP": (MODELS["second MLP"], (1, layout())),
    "no layers": (MODELS["no layers"], TP2),
}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients(name: str) -> None:
    model, (world_size, parallel) = CASES[name]
    config = _run(replace(model, **FACTORS), parallel)
    _check(config, world_size, loss_error=1e-6, gradient_error=1e-5)


def _around_growths(configs: list[RunConfig]) -> list[list[dict[str, float] | None]]:
    found = []
    for config in configs:
        live = begin(config, 2)
        for shard in live.shards():
            shard.main.data.add_(0.05)  # no bias is zero, no norm one
        live.write_back()
        before = live.evaluate(bert.micro_batches(config, 0), 1)
        live = grow(live, config, 2)
        found.append([before, live.evaluate(bert.micro_batches(config, 0), 1)])
        live.release()
    return found


def test_heads_embeddings_and_branches_of_a_bert() -> None:
    """Both losses stay where factors appear at a growth, for which weights make up."""
    plain = dict.fromkeys(FACTORS)
    configs = [
        run_config(
            StageSection(until=1, model=plain, parallel=layout(tp=2)),
            StageSection(parallel=layout(pp=2)),
            model=replace(bert.bert(norm_position=norms), **FACTORS),
        )
        for norms in ("pre", "post")
    ]
    for seen in run_ranks(2, _around_growths, configs):
        for before, after in seen:
            assert after == pytest.approx(before, rel=2e-5)
