"""A small run for tests: shapes, stages, and training on reproducible random tokens."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection, TrainSection
from megatron_grow.config.stages import StageSection
from megatron_grow.growth import filling
from megatron_grow.growth.plan import Plan, growth, initialisation
from megatron_grow.live.stage import LiveStage
from megatron_grow.methods import aligned, methods_of
from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.parametrization.table import run_parametrization
from megatron_grow.state.boxes import slices
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.train.loop import Loop

MODEL = ModelConfig(
    num_layers=4,
    hidden_size=32,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=64,
    vocab_size=128,
    make_vocab_size_divisible_by=16,
    max_position_embeddings=16,
)
TIED = replace(MODEL, num_layers=2)
"""A smaller one; the head is the embedding, as it is in MODEL."""
TRAIN = TrainSection(
    train_iters=20, global_batch_size=8, micro_batch_size=1, seq_length=16, eval_iters=1
)


def layout(tp: int = 1, pp: int = 1, **more: Any) -> dict[str, Any]:
    """A stage's ``parallel``."""
    return {"tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp, **more}


def run_config(
    *stages: StageSection,
    model: ModelConfig = MODEL,
    optimizer: OptimizerSection | None = None,
    **train: Any,
) -> RunConfig:
    """A run of ``stages`` over the toy model."""
    return RunConfig(
        model=model,
        train=replace(TRAIN, **train),
        optimizer=optimizer or OptimizerSection(lr=1e-2),
        stages=list(stages),
    )


def still_run(
    parallel: dict[str, Any],
    model: ModelConfig = TIED,
    optimizer: str = "adam",
    precision: str = "fp32",
) -> RunConfig:
    """A run that never grows."""
    return run_config(
        StageSection(parallel=parallel),
        model=model,
        optimizer=OptimizerSection(optimizer=optimizer),
        precision=precision,
    )


def grown_run(
    before: dict[str, Any],
    after: dict[str, Any],
    *,
    source_layers: int = 2,
    depth: str = "random",
    until: int = 10,
    **more: Any,
) -> RunConfig:
    """A run that grows once, at step ``until``."""
    return run_config(
        StageSection(until=until, model={"num_layers": source_layers}, parallel=before),
        StageSection(parallel=after, grow=GrowSection(depth=depth)),
        **more,
    )


def tokens(step: int, vocab: int, batch: int, length: int) -> torch.Tensor:
    """Global batch of ``step``: (batch, length + 1) random tokens with some structure."""
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, vocab // 4, (batch, length + 1), generator=generator) * 3


def shares(
    config: RunConfig,
    first_step: int,
    samples: Callable[[int, int, int, int], dict[str, torch.Tensor]],
) -> Iterator[dict[str, torch.Tensor]]:
    """This data-parallel rank's share of ``samples``, micro-batch by micro-batch.

    Those are asked for by step, vocabulary, samples in a global batch and length.
    """
    stages = config.resolve(dist.get_world_size())
    peers = parallel_state.get_data_parallel_world_size()
    rank = parallel_state.get_data_parallel_rank()
    for step in count(first_step):
        shape = next((s for s in stages if step < s.last_step), stages[-1]).batch
        whole = samples(step, config.model.vocabulary, shape.global_batch_size, shape.seq_length)
        size = shape.micro_batch_size
        for start in range(rank * size, shape.global_batch_size, peers * size):
            yield {name: values[start : start + size] for name, values in whole.items()}


def running_text(step: int, vocab: int, batch: int, length: int) -> dict[str, torch.Tensor]:
    """:func:`tokens` as a GPT reads them."""
    text = tokens(step, vocab, batch, length)
    return {
        "tokens": text[:, :-1],
        "labels": text[:, 1:],
        "position_ids": torch.arange(length).expand(batch, -1),
        "loss_mask": torch.ones(batch, length),
    }


def micro_batches(config: RunConfig, first_step: int) -> Iterator[dict[str, torch.Tensor]]:
    """This data-parallel rank's share of :func:`running_text`."""
    return shares(config, first_step, running_text)


@dataclass
class Trace:
    """What a toy run did."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    received: list[int] = field(default_factory=list)


def plan_of(config: RunConfig, world_size: int, index: int) -> Plan:
    """How stage ``index`` begins."""
    stages, depth, seed = config.resolve(world_size), config.model.num_layers, config.run.seed
    stage = stages[index]
    if index == 0:
        return initialisation(stage.model, depth, seed, run_parametrization(config).tensors)
    return growth(
        stages[index - 1].model,
        stage.model,
        stage.grow,
        target_depth=depth,
        seed=seed,
        optimizer=optimizer_of(config.optimizer),
        tensors_of=run_parametrization(config).tensors,
    )


def begin(config: RunConfig, world_size: int) -> LiveStage:
    """The first stage, initialised."""
    stage, plan = config.resolve(world_size)[0], plan_of(config, world_size, 0)
    return filling.fresh(aligned(stage), config, plan)


def make_uneven(live: LiveStage) -> None:
    """Add noise to its weights, by name the same on any layout: no bias stays zero, no norm one."""
    for piece in live.pieces():
        if piece.kind == MAIN_PARAM:
            generator = torch.Generator().manual_seed(zlib.crc32(piece.key.encode()))
            noise = torch.randn(live.tensors[piece.key].shape, generator=generator)
            piece.data.add_(0.1 * noise[slices(piece.box)])
    live.write_back()


def grow(
    live: LiveStage, config: RunConfig, world_size: int, trace: Trace | None = None
) -> LiveStage:
    """The stage after ``live``, grown from it."""
    index = live.stage.index + 1
    stage, plan = config.resolve(world_size)[index], plan_of(config, world_size, index)
    grown, received = filling.grown(live, aligned(stage), config, plan)
    if trace is not None:
        trace.received.append(received)
    return grown


def loop_over(
    live: LiveStage,
    config: RunConfig,
    step: int | None = None,
    others: Sequence[TrainingMethod] = (),
) -> Loop:
    """The loop over a stage of which ``step`` steps of the run are done; none of its own."""
    world_size, stage = dist.get_world_size(), live.stage
    plan = plan_of(config, world_size, stage.index)
    methods = methods_of(stage, config, plan)
    step = stage.first_step if step is None else step
    ctx = Context(config, config.resolve(world_size), live, plan, step, methods)
    return Loop(ctx, others)


def train_stage(live: LiveStage, config: RunConfig, trace: Trace, steps: int | None = None) -> None:
    """Train from the stage's start to its end, or for ``steps`` steps."""
    loop = loop_over(live, config)
    for ctx in islice(loop.steps(micro_batches(config, live.stage.first_step)), steps):
        trace.losses.append(ctx.mean_loss())
        trace.grad_norms.append(ctx.grad_norm)
    loop.end()


def train(config: RunConfig, world_size: int) -> Trace:
    """The whole run, growths included, on the ranks of this process group."""
    trace = Trace()
    live = begin(config, world_size)
    train_stage(live, config, trace)
    for _ in config.stages[1:]:
        live = grow(live, config, world_size, trace)
        train_stage(live, config, trace)
    live.release()
    return trace
