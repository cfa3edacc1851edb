"""Losses and gradients of a network whose tokens share places, against plain PyTorch."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch

from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import DataSection, OptimizerSection
from megatron_grow.config.stages import StageSection
from megatron_grow.model.architectures import architecture_of, logical_tensors
from megatron_grow.state.kinds import MAIN_PARAM
from tests.bert import MOST_MASKED, bert, micro_batches, samples
from tests.distributed import run_ranks
from tests.model.bert import pooled_reference
from tests.state.snapshot import Part, assemble, snapshot
from tests.toy import TRAIN, begin, layout, loop_over, make_uneven, run_config

BETA1, STEPS = 0.9, 4
LENGTH = TRAIN.seq_length
MASKED = DataSection(options={"masked_lm_prob": MOST_MASKED / LENGTH})


def _run(norm_position: str, pool_size: int, parallel: dict[str, Any], **train: Any) -> RunConfig:
    config = run_config(
        StageSection(parallel=parallel),
        model=bert(norm_position=norm_position, pool_size=pool_size),
        optimizer=OptimizerSection(lr=1e-3, adam_beta1=BETA1, clip_grad=0.0),
        **train,
    )
    config.data = MASKED
    return config


def _train(
    config: RunConfig, world_size: int
) -> tuple[list[Part], list[Part], list[float], list[float]]:
    """Weights, the state after one step, an evaluation, and losses of several steps."""
    live = begin(config, world_size)
    make_uneven(live)
    weights = snapshot(live.pieces())
    measured = live.evaluate(micro_batches(config, 0), 1)
    loop, losses, after = loop_over(live, config), [], None
    for ctx in islice(loop.steps(micro_batches(config, 0)), STEPS):
        losses.append(ctx.mean_loss())
        after = after or snapshot(live.pieces())
    live.release()
    return weights, after, [measured["loss"]], losses


ALONE: dict[tuple[str, int], list[float]] = {}
"""Losses of one rank, by position of norms and size of pools."""
SP2 = layout(tp=2, sequence_parallel=True)
VPP2 = layout(pp=2, virtual_pipeline_model_parallel_size=2)
TP2_PP2 = layout(tp=2, pp=2, sequence_parallel=True)


@pytest.mark.parametrize(
    ("norm_position", "pool_size", "ranks", "parallel", "train"),
    [
        pytest.param("pre", 2, 1, layout(), {}, id="pre-norm"),
        pytest.param("pre", 2, 4, TP2_PP2, {}, id="pre-norm, TP2 SP PP2"),
        pytest.param("post", 3, 1, layout(), {"micro_batch_size": 4}, id="post-norm"),
        pytest.param("post", 3, 2, layout(), {}, id="post-norm, DP2"),
        pytest.param("post", 3, 2, SP2, {"recompute_granularity": "full"}, id="SP2, recomputed"),
        pytest.param("post", 3, 2, VPP2, {"recompute_granularity": "selective"}, id="VPP2"),
    ],
)
def test_losses_and_gradients(
    norm_position: str, pool_size: int, ranks: int, parallel: dict[str, Any], train: dict[str, Any]
) -> None:
    config = _run(norm_position, pool_size, parallel, **train)
    model, tensors = config.model, logical_tensors(config.model)
    results = run_ranks(ranks, _train, config, ranks)
    before = assemble(tensors, [weights for weights, *_ in results])
    after = assemble(tensors, [state for _, state, *_ in results])

    exact = {
        key: torch.from_numpy(before[key, MAIN_PARAM]).double().requires_grad_() for key in tensors
    }
    shaped = {key: value.reshape(tensors[key].checkpoint_shape) for key, value in exact.items()}
    batch = samples(0, model.vocabulary, config.train.global_batch_size, LENGTH)
    loss = pooled_reference.loss(model, shaped, batch, pool_size)
    loss.backward()

    for key, value in exact.items():
        found = torch.from_numpy(after[key, "exp_avg"]).double() / (1 - BETA1)
        error = (found - value.grad).norm() / value.grad.norm()
        assert error < 2e-5, f"gradient of {key}: relative error {error:.1e}"
    alone = ALONE.setdefault((norm_position, pool_size), results[0][3])
    for _, _, measured, losses in results:
        assert measured == pytest.approx([loss.item()], rel=1e-6)
        assert losses == pytest.approx(alone, rel=2e-6)
        assert losses[0] == pytest.approx(loss.item(), rel=1e-6)


def _says(config: RunConfig) -> np.ndarray:
    live = begin(config, 1)
    tokens = samples(0, config.model.vocabulary, 2, LENGTH)["tokens"]
    with torch.no_grad():
        return architecture_of(config.model).logits(live.chunks[0], tokens).numpy()


def test_what_is_said_of_all_tokens_is_said_without_pooling() -> None:
    """With the same weights as a model that has none."""
    pooled, plain = (run_ranks(1, _says, _run("post", size, layout()))[0] for size in (4, 1))
    assert np.abs(pooled - plain).max() < 1e-6
