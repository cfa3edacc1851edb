"""Memory by formula, in the parts that a rehearsal tells of."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_grow.config.run import RunConfig
from megatron_grow.cost.memory import MemoryEstimate
from megatron_grow.cost.peak import peak_memory
from megatron_grow.cost.step import Placement, Step
from megatron_grow.optim.optimizers import optimizer_of

WITHIN = 0.05


def placed(config: RunConfig, stage: int, world_size: int) -> Placement:
    """A stage of a run on the ranks of a job."""
    found, optimizer = config.resolve(world_size)[stage], optimizer_of(config.optimizer)
    return Placement(found.model, found.parallel, world_size, config.train.precision, optimizer)


def states_by_part(states: MemoryEstimate) -> dict[str, int]:
    """What is held at all times."""
    optimizer = states.main_params + states.moments
    return {
        "weights": states.weights,
        "gradients": states.gradients,
        "optimizer": optimizer,
    }


def peak_by_part(config: RunConfig, stage: int, world_size: int) -> list[dict[str, int]]:
    """Of training, on each pipeline rank, with the kernels that the run uses on a GPU."""
    found = config.resolve(world_size)[stage]
    kernels = config.kernels.on_a_gpu(found.parallel)
    peaks = peak_memory(Step(placed(config, stage, world_size), found.batch, kernels=kernels))
    return [
        {**states_by_part(peak.states), "activations": peak.activations + peak.working}
        for peak in peaks
    ]


def check_parts(phase: dict[str, Any], expected: dict[str, int]) -> None:
    """Each part of a rehearsed peak is what the formula says, and so is their sum."""
    found = {part: phase["parts"][part] for part in expected}
    assert found == pytest.approx(expected, rel=WITHIN)
    assert phase["peak"] == pytest.approx(sum(expected.values()), rel=WITHIN)
