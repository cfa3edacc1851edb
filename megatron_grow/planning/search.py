"""The layout in which a stage is fastest, and what speaks against the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from rich.filesize import decimal

from megatron_grow.config.batch import BatchShape
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.config.stages import Stage
from megatron_grow.cost.peak import PeakMemory, peak_memory
from megatron_grow.cost.step import Placement, Step
from megatron_grow.cost.step_time import Machine, StepTime, model_flops, step_time
from megatron_grow.inputs.errors import UserError
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.planning.duration import duration
from megatron_grow.planning.layouts import layouts, why_not

FILLED = 0.95
"""Share of a GPU's memory that a plan fills at most: blocks leave gaps between them."""
_AS_FAST = 1.01
"""A simpler layout is chosen over one that is no more than this faster."""
_TOLD = 4
"""Layouts of which is said why they were not chosen."""


@dataclass(frozen=True)
class Option:
    """A layout of a stage, and what it gives."""

    step: Step
    time: StepTime
    machine: Machine

    @cached_property
    def peak(self) -> PeakMemory:
        """On the fullest pipeline rank."""
        return max(peak_memory(self.step), key=lambda peak: peak.total)

    @property
    def fits(self) -> bool:
        """Whether the GPU has that much memory."""
        return self.peak.total <= FILLED * self.machine.device.memory

    @property
    def tokens_per_second(self) -> float:
        """Of the whole job."""
        return self.step.batch.tokens / self.time.total

    @property
    def utilisation(self) -> float:
        """Model FLOPs utilisation, waiting and communication included."""
        ranks = self.step.placement.world_size
        return model_flops(self.step) / self.time.total / (ranks * self.machine.device.bf16)

    def describe(self) -> str:
        """In short, for example ``TP2 PP1 DP32 SP, micro-batch 4``."""
        placed = self.step.placement
        layout = placed.parallel.describe(placed.world_size)
        return f"{layout}, micro-batch {self.step.batch.micro_batch_size}"

    @property
    def complexity(self) -> tuple[int, ...]:
        """Orders layouts: how often the model is cut, then chunks; large micro-batches first."""
        parallel = self.step.placement.parallel
        cut = parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size
        return cut, parallel.model_chunks, -self.step.batch.micro_batch_size


@dataclass(frozen=True)
class Found:
    """What a search has found for a stage."""

    chosen: Option
    considered: int
    against: list[str]
    """Why not the others, the fastest of them first."""
    written: Option | None
    """In the layout of the run file, where that works on so many GPUs."""
    why_not_written: str | None


def find(
    stage: Stage, config: RunConfig, train: TrainSection, world_size: int, machine: Machine
) -> Found | None:
    """The fastest layout that fits; None where none does.

    Args:
        stage: of the run.
        config: the run.
        train: what is recomputed.
        world_size: GPUs of the job.
        machine: what it runs on.

    Raises:
        UserError: no layout divides the stage and its batch over so many ranks.
    """
    placements: dict[ParallelConfig, Placement] = {}
    options = []
    for parallel, batch in layouts(stage, train, world_size, machine.device.gpus_per_node):
        if parallel not in placements:  # several batches share what is calculated of it
            placements[parallel] = _placed(stage, config, parallel, world_size)
        options.append(_option(placements[parallel], batch, config, train, machine))
    if not options:
        raise UserError(
            f"stages[{stage.index}]: no layout divides the model and the "
            f"global_batch_size={stage.batch.global_batch_size} over --num-gpus={world_size}"
        )
    options.sort(key=lambda option: option.time.total)
    fastest = next((option for option in options if option.fits), None)
    if fastest is None:
        return None
    alike = (o for o in options if o.time.total <= _AS_FAST * fastest.time.total and o.fits)
    chosen = min(alike, key=lambda option: option.complexity)
    reason = why_not(stage, stage.parallel, stage.batch, train, world_size)
    written = None
    if reason is None:
        placed = _placed(stage, config, stage.parallel, world_size)
        written = _option(placed, stage.batch, config, train, machine)
    return Found(chosen, len(options), _against(chosen, options), written, reason)


def _placed(
    stage: Stage, config: RunConfig, parallel: ParallelConfig, world_size: int
) -> Placement:
    optimizer = optimizer_of(config.optimizer)
    return Placement(stage.model, parallel, world_size, config.train.precision, optimizer)


def _option(
    placed: Placement, batch: BatchShape, config: RunConfig, train: TrainSection, machine: Machine
) -> Option:
    pieces = train.recompute_num_layers if train.recompute_granularity == "full" else None
    kernels = config.kernels.on_a_gpu(placed.parallel)
    step = Step(placed, batch, pieces, config.data, kernels)
    return Option(step, step_time(step, machine), machine)


def _against(chosen: Option, options: Sequence[Option]) -> list[str]:
    """Why not the fastest other cuts of the model: of each its fastest layout that fits, or, where
    none does, the one that takes the least memory."""
    cuts: dict[tuple[int, int], list[Option]] = {}
    for option in options:
        cuts.setdefault(_cut(option), []).append(option)
    del cuts[_cut(chosen)]
    said = []
    for alike in list(cuts.values())[:_TOLD]:
        least = min(alike, key=lambda option: option.peak.total)
        shown = next((option for option in alike if option.fits), least)
        said.append(f"{shown.describe()}: {_reason(shown, chosen)}")
    return said


def _cut(option: Option) -> tuple[int, int]:
    parallel = option.step.placement.parallel
    return parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size


def _reason(option: Option, chosen: Option) -> str:
    if not option.fits:
        there = decimal(round(FILLED * option.machine.device.memory))
        return f"does not fit, {decimal(option.peak.total)} of {there}"
    slower = option.time.total / chosen.time.total - 1
    if slower <= 0:
        return f"{-100 * slower:.1f} % faster, which is not worth cutting the model more"
    ours, theirs = asdict(chosen.time), asdict(option.time)
    part = max(ours, key=lambda name: theirs[name] - ours[name])
    return (
        f"{100 * slower:.1f} % slower, most of it {_PARTS[part]}, {duration(theirs[part])} of a "
        f"step instead of {duration(ours[part])}"
    )


_PARTS = {
    "compute": "the fullest rank's computation",
    "bubble": "the pipeline's bubble",
    "tensor": "tensor-parallel communication",
    "pipeline": "sends between pipeline ranks",
    "data": "data-parallel communication",
    "update": "the optimizer's update",
}
