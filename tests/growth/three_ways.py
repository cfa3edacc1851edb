"""A growth on real ranks in all three ways, and its truth: the algebra on whole tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from math import frexp, sqrt
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from megatron_grow.checkpoint.torch_dist.reader import TorchDistReader
from megatron_grow.checkpoint.torch_dist.writer import TorchDistWriter
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.convert.conversion import convert
from megatron_grow.convert.progress import Progress
from megatron_grow.growth.at_load import load
from megatron_grow.growth.offline import GrownReader
from megatron_grow.growth.plan import Plan, resharding
from megatron_grow.live.stage import LiveStage, filled
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.boxes import Box, full, slices
from megatron_grow.state.materialise import materialise
from tests.checkpoint.live import write
from tests.state.snapshot import Part, State, assemble, snapshot
from tests.toy import grow, plan_of

Seen = TypeVar("Seen")


@dataclass
class Found(Generic[Seen]):
    """What a rank has of the state before, and after the growth in each way."""

    source: list[Part]
    target: list[Part]
    loaded: list[Part]
    offline: list[Part]
    before: Seen
    """What was seen of the stage before it grew in memory."""
    after: Seen
    """And after that."""


def grow_all_ways(
    live: LiveStage,
    config: RunConfig,
    world_size: int,
    directory: Path,
    see: Callable[[LiveStage], Seen],
) -> Found[Seen]:
    """On a rank: the first stage, at its end, grown in memory, while loading, from file to file.

    What ``see`` does to the stage after the growth has no influence on the states.
    """
    step = live.stage.last_step
    source, before = snapshot(live.pieces()), see(live)
    path = write(live, config, directory, step)
    live = grow(live, config, world_size)
    target, after = snapshot(live.pieces()), see(live)
    live.release()
    plan, stage = plan_of(config, world_size, 1), config.resolve(world_size)[1]
    live = filled(stage, config, plan.tensors, partial(load, plan, TorchDistReader(path)), 0)
    loaded = snapshot(live.pieces())
    converted = convert_offline(plan, path, stage, step, tp=2 if world_size > 1 else 1)
    load(resharding(stage.model), TorchDistReader(converted), live.pieces())
    offline = snapshot(live.pieces())
    live.release()
    dist.barrier()
    return Found(source, target, loaded, offline, before, after)


def convert_offline(plan: Plan, path: Path, stage: Stage, step: int, tp: int) -> Path:
    """The same growth from file to file; every rank writes its share."""
    assert stage.grow is not None
    source = GrownReader(TorchDistReader(path), plan, stage.model, stage.grow)
    kinds = {key: source.kinds(key) for key in source.tensors}

    def writer(directory: Path) -> TorchDistWriter:
        return TorchDistWriter(
            directory, source.record, source.tensors, kinds, keeps_main=True, tensor_parallel=tp
        )

    final = path.parent / "converted" / path.name
    convert(
        source,
        final,
        writer,
        step=step,
        threads=1,
        verifies=False,
        progress=Progress(enabled=False),
    )
    return final


def exact_rms(layers: np.ndarray) -> tuple[float, ...]:
    """Of each layer, from squares on a grid that is fine enough for their sum to fill 62 bits."""
    found = []
    for layer in layers:
        scale = 2 ** (62 - frexp(float(np.abs(layer).max()) ** 2 * layer.size)[1])
        squares = [round(Fraction(float(x)) ** 2 * scale) for x in layer.flat]
        found.append(sqrt(sum(squares) / layer.size / scale))
    return tuple(found)


def by_algebra(plan: Plan, source: ModelConfig, state: State) -> State:
    """The whole target state, by one process, from the whole source state."""
    tensors = logical_tensors(source)
    plan = plan.answered(
        lambda questions: {
            asked: torch.tensor(
                exact_rms(state[asked.tensor.key, "main_param"]), dtype=torch.float64
            )
            for asked in questions
        }
    )
    grown: State = {}

    def read(key: str, kind: str, box: Box) -> torch.Tensor:
        return torch.from_numpy(state[key, kind]).view(tensors[key].shape)[slices(box)]

    for kind in {kind for _, kind in state}:
        for key, tensor in plan.tensors.items():
            whole = full(tensor.shape)
            grown[key, kind] = materialise(
                plan.map(key, kind), kind, whole, read, plan.seed
            ).numpy()
    return grown


def check_bits(config: RunConfig, ranks: Sequence[Found]) -> None:
    """Weights and moments are those of the algebra, in all three ways."""
    world_size = len(ranks)
    plan, source = plan_of(config, world_size, 1), config.resolve(world_size)[0].model
    state = assemble(logical_tensors(source), [rank.source for rank in ranks])
    truth = by_algebra(plan, source, state)
    in_memory = assemble(plan.tensors, [rank.target for rank in ranks])
    at_load = assemble(plan.tensors, [rank.loaded for rank in ranks])
    offline = assemble(plan.tensors, [rank.offline for rank in ranks])
    assert set(in_memory) == set(at_load) == set(offline) == set(truth)
    for key, values in truth.items():
        assert np.array_equal(in_memory[key], values), key
        assert np.array_equal(at_load[key], values), key
        assert np.array_equal(offline[key], values), key
