"""Everything that can be found wrong before any model is built."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch.distributed as dist

from megatron_grow.checkpoint.lock import Holder
from megatron_grow.checkpoint.record import Record
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.config.timing import most_tokens
from megatron_grow.data.check import Split
from megatron_grow.growth.plan import Plan, growth
from megatron_grow.methods import aligned, methods_of
from megatron_grow.methods.base import TrainingMethod
from megatron_grow.model.architectures import architecture_of, data_options_of, logical_tensors
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.parallel.agreement import together
from megatron_grow.parametrization.table import run_parametrization
from megatron_grow.train.choice import Choice
from megatron_grow.train.ending import rule_of
from megatron_grow.train.fits import check_fits
from megatron_grow.train.metrics import check_wandb
from megatron_grow.train.releases import check_releases
from megatron_grow.train.start import Start, find_start


@dataclass
class Checked:
    """A run that can work, if it can begin."""

    config: RunConfig
    stages: list[Stage]
    growths: list[Plan]
    """How each stage but the first begins."""
    methods: list[dict[str, TrainingMethod]]
    """Of each stage but the first, by their place in its section."""
    data: tuple[Split, Split | None]
    """Training and validation."""

    @property
    def corpora(self) -> dict[str, str]:
        """As in :class:`~megatron_grow.checkpoint.record.Record`."""
        found = [corpus for split in self.data if split for corpus in split.corpora]
        made = {c.prefix: c.sidecar and c.sidecar.tokenizer_digest for c in found}
        return {c.prefix: f"{c.digest} {made[c.prefix] or ''}".strip() for c in found}

    @property
    def train_samples(self) -> int:
        """As many as the run reads at most, whether or not ends of its stages are known."""
        return -(-most_tokens(self.stages) // self.config.train.seq_length)


@dataclass
class Prepared:
    """A run that has passed all checks."""

    config: RunConfig
    stages: list[Stage]
    plans: list[Plan]
    """How each stage begins: from nothing, a checkpoint, or the stage before."""
    methods: list[dict[str, TrainingMethod]]
    """Of each stage, by their place in its section."""
    choice: Choice
    start: Start | None
    data: tuple[Split, Split | None]
    """Training and validation."""
    train_samples: int
    """As many as it reads at most."""
    corpora: dict[str, str]
    """As in the record."""
    holder: Holder | None = None
    """On rank 0, as whom it holds the directories of the run."""

    @property
    def resumed(self) -> Record | None:
        """The run's own record, where it goes on from one."""
        return self.start.source.record if self.start and self.start.resumes else None


def check(config: RunConfig) -> Checked:
    """Check on this rank what does not depend on the run's directories.

    Args:
        config: with its vocabulary (:mod:`~megatron_grow.data.tokenizers.vocabulary`).

    Raises:
        UserError: whatever cannot work.
    """
    stages = config.resolve(dist.get_world_size())
    for stage in stages:
        where, parallel = f"stages[{stage.index}]", stage.parallel
        axes = (axis for tensor in logical_tensors(stage.model).values() for axis in tensor.axes)
        parallel.check_axes(axes, where)
        architecture_of(stage.model).check(stage, config.train, where)
        parallel.check_context(config.train.transformer_impl, stage.batch.seq_length, where)
    check_fits(config, stages, dist.get_world_size())
    growths = growth_plans(config, stages)
    check_wandb(config.logging.wandb_project)
    data_options_of(config.model, config.data)
    data = architecture_of(config.model).check_data(config, stages)
    for stage in stages:
        rule_of(stage, config)
    methods = [
        methods_of(stage, config, plan) for stage, plan in zip(stages[1:], growths, strict=True)
    ]
    return Checked(config, [aligned(stage) for stage in stages], growths, methods, data)


def prepare(checked: Checked, holder: Holder | None = None) -> Prepared:
    """Find where the run begins, in directories that it holds; every rank takes part.

    Args:
        checked: the run.
        holder: on rank 0, as whom it holds the directories of the run.

    Raises:
        UserError: whatever cannot work.
    """
    config, stages, corpora = checked.config, checked.stages, checked.corpora
    choice, start, first = find_start(config, stages, corpora)
    plans = [first, *checked.growths]
    together(lambda: check_releases(config, stages, plans))
    return Prepared(
        config=config,
        stages=start.stages if start else stages,
        plans=plans,
        methods=[together(lambda: methods_of(stages[0], config, first)), *checked.methods],
        choice=choice,
        start=start,
        data=checked.data,
        train_samples=checked.train_samples,
        corpora=corpora,
        holder=holder,
    )


def growth_plans(config: RunConfig, stages: list[Stage]) -> list[Plan]:
    """How each stage but the first grows out of the one before."""
    optimizer = optimizer_of(config.optimizer)
    # One seed for all: fresh layers are those with which a run of the full size would have begun.
    return [
        growth(
            before.model,
            stage.model,
            stage.grow,
            target_depth=config.model.num_layers,
            seed=config.run.seed,
            optimizer=optimizer,
            tensors_of=run_parametrization(config).tensors,
            where=f"stages[{stage.index}].grow",
        )
        for before, stage in pairwise(stages)
    ]
