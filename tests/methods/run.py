"""A stage that trains under methods: its state before and after, step by step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch.distributed as dist

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection, ScheduleSection
from megatron_grow.config.stages import StageSection
from megatron_grow.model.architectures import logical_tensors
from tests.distributed import run_ranks
from tests.state.snapshot import assemble, snapshot
from tests.toy import MODEL, begin, grow, layout, loop_over, micro_batches, run_config

STEPS_BEFORE, STEPS = 3, 4
LR, WEIGHT_DECAY, BETA1, BETA2, EPS = 1e-2, 0.1, 0.9, 0.95, 1e-8
ONE = (1, layout())
EIGHT = (
    8,
    layout(
        tp=2,
        pp=2,
        sequence_parallel=True,
        overlap_grad_reduce=True,
        overlap_param_gather=True,
    ),
)
"""TP2 PP2 DP2, with the distributed optimizer."""
OLD_LAYERS, NEW_LAYERS = (0, 2), (1, 3)
"""Of ``copying_zero``, from two to four."""
OLD_FFN, FFN = 48, 64


def grown(methods: list[Any], parallel: dict[str, Any], **more: Any) -> RunConfig:
    """A run whose second stage, of twice the layers and more feed-forward units, has methods."""
    section = {"lr": LR, "weight_decay": WEIGHT_DECAY, "clip_grad": 0.0} | more.pop("optimizer", {})
    before = {"num_layers": 2, "ffn_hidden_size": OLD_FFN}
    config = run_config(
        StageSection(until=STEPS_BEFORE, model=before, parallel=layout()),
        StageSection(
            train={"micro_batch_size": 2},
            parallel=parallel,
            grow=GrowSection(depth="copying_zero", ffn="random"),
            methods=methods,
        ),
        model=MODEL,
        optimizer=OptimizerSection(**section),
        **more,
    )
    schedule = ScheduleSection(lr_warmup_fraction=0.0, lr_decay_style="constant")
    return replace(config, schedule=schedule)


State = dict[tuple[str, str], np.ndarray]


@dataclass
class Run:
    """What the second stage did."""

    states: list[Any] = field(default_factory=list)
    """At its start, and after each of its steps."""
    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)


Case = tuple[list[Any], dict[str, Any]]
"""Methods, and what else :func:`grown` takes."""


def runs(where: tuple[int, dict[str, Any]], cases: dict[str, Case]) -> dict[str, Run]:
    """Runs on one layout, one after another; their states are whole tensors."""
    world_size, parallel = where
    configs = {name: grown(methods, parallel, **more) for name, (methods, more) in cases.items()}
    return watched(world_size, configs)


def watched(world_size: int, configs: dict[str, RunConfig]) -> dict[str, Run]:
    """As :func:`runs`, of any runs that grow after ``STEPS_BEFORE`` steps."""
    ranks = run_ranks(world_size, _train_all, configs)
    return {
        name: _whole([rank[name] for rank in ranks], config.model)
        for name, config in configs.items()
    }


def _train_all(configs: dict[str, RunConfig]) -> dict[str, Run]:
    return {name: _train(config) for name, config in configs.items()}


def _train(config: RunConfig) -> Run:
    """On a rank: train the first stage, grow, and watch the second."""
    world_size, run = dist.get_world_size(), Run()
    live = begin(config, world_size)
    for _ in loop_over(live, config).steps(micro_batches(config, 0)):
        pass
    live = grow(live, config, world_size)
    loop, batches = loop_over(live, config), micro_batches(config, STEPS_BEFORE)
    run.states.append(snapshot(live.pieces()))
    for _ in range(STEPS):
        loop.step(batches)
        run.losses.append(loop.ctx.mean_loss())
        run.grad_norms.append(loop.ctx.grad_norm)
        run.states.append(snapshot(live.pieces()))
    loop.end()
    live.release()
    return run


def _whole(ranks: list[Run], model: ModelConfig) -> Run:
    assert all(rank.losses == ranks[0].losses for rank in ranks)
    assert all(rank.grad_norms == ranks[0].grad_norms for rank in ranks)
    tensors = logical_tensors(model)
    states = zip(*(rank.states for rank in ranks), strict=True)
    return replace(ranks[0], states=[assemble(tensors, parts) for parts in states])


def adam(before: State, after: State, key: str, updates: int) -> np.ndarray:
    """What AdamW makes of a weight with the moments that it has after the update.

    Args:
        before: the update.
        after: it.
        key: of the tensor.
        updates: with it.
    """
    first = after[key, "exp_avg"].astype(np.float64) / (1 - BETA1**updates)
    second = after[key, "exp_avg_sq"].astype(np.float64) / (1 - BETA2**updates)
    weight = before[key, "main_param"].astype(np.float64)
    decay = 0.0 if key.endswith("bias") or "norm" in key else WEIGHT_DECAY
    return weight * (1 - LR * decay) - LR * first / (np.sqrt(second) + EPS)
