"""Experts over expert-parallel ranks, their rows over expert-tensor-parallel ones: one rank's run.

The architecture is an outsider's, named by import path, with rows of the axis table of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.growth.plan import growth
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import logical_tensors
from tests.checkpoint.live import resume, train_to, write
from tests.distributed import run_ranks
from tests.state.snapshot import Part, State, assemble, snapshot
from tests.toy import MODEL, Trace, begin, grow, layout, run_config, train_stage

EXPERTS = replace(
    MODEL,
    architecture="tests.architectures.moe:Experts",
    options={"experts": 4},
    num_layers=2,
    add_bias_linear=False,
)
ROUTER, FC1, FC2 = (
    f"decoder.layers.mlp.{name}.weight"
    for name in ("router", "experts.experts.linear_fc1", "experts.experts.linear_fc2")
)
GROWS, SAVED, ENDS = 2, 4, 6


def shared(tp: int, ep: int, etp: int | None = None, **more: Any) -> dict[str, Any]:
    return layout(
        tp=tp,
        expert_model_parallel_size=ep,
        expert_tensor_parallel_size=etp,
        sequence_parallel=tp > 1,  # with experts, megatron-core wants it
        **more,
    )


def run(before: dict[str, Any], after: dict[str, Any]) -> RunConfig:
    """A layer becomes two, and experts twice as wide."""
    return run_config(
        StageSection(until=GROWS, model={"num_layers": 1, "ffn_hidden_size": 32}, parallel=before),
        StageSection(parallel=after, grow=GrowSection(depth="copying_stack", ffn="hypercloning")),
        model=EXPERTS,
        train_iters=ENDS,
        global_batch_size=4,
    )


@dataclass(frozen=True)
class Found:
    """What a rank found."""

    trace: Trace
    begun: list[Part]
    before: list[Part]
    after: list[Part]
    resumed: list[float]
    """Losses behind a checkpoint that another layout reads."""


def train(world_size: int, config: RunConfig, later: dict[str, Any], root: Path) -> Found:
    """On a rank: train, grow, train, save; and go on from there under the layout ``later``."""
    trace, live = Trace(), begin(config, world_size)
    begun = snapshot(live.pieces())
    train_stage(live, config, trace)
    before = snapshot(live.pieces())
    live = grow(live, config, world_size)
    after = snapshot(live.pieces())
    trace.losses += train_to(live, config, GROWS, SAVED)
    path = write(live, config, root, SAVED)
    live.release()
    config.stages[1].parallel = later
    live = resume(path, config, world_size)
    resumed = train_to(live, config, SAVED, ENDS)
    live.release()
    return Found(trace, begun, before, after, resumed)


LAYOUTS = {
    "EP2 x ETP2, TP2 EP2 x ETP1, EP4": (shared(2, 2, 2), shared(2, 2, 1), shared(1, 4)),
    "EP2 replicated, TP4, EP4 x ETP1": (
        shared(1, 2, use_distributed_optimizer=False),
        shared(2, 1),
        shared(2, 4, 1),
    ),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Found:
    root, one = tmp_path_factory.mktemp("alone"), shared(1, 1)
    return run_ranks(1, train, 1, run(one, one), one, root)[0]


@pytest.fixture(scope="module", params=LAYOUTS)
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    before, after, later = LAYOUTS[request.param]
    root = tmp_path_factory.mktemp("ranks")
    return run_ranks(4, train, 4, run(before, after), later, root)


SMALL, LARGE = (
    logical_tensors(stage.model) for stage in run(shared(1, 1), shared(1, 1)).resolve(1)
)


def test_training_is_that_of_one_rank(alone: Found, ranks: list[Found]) -> None:
    """Before and after the growth, and from a checkpoint under a third layout."""
    for found in ranks:
        assert found.trace.losses == pytest.approx(alone.trace.losses, abs=2e-6)
        assert found.trace.grad_norms == pytest.approx(alone.trace.grad_norms, abs=2e-6)
        assert found.resumed == pytest.approx(alone.resumed, abs=2e-6)
    assert len(alone.trace.losses) + len(alone.resumed) == ENDS
    assert alone.resumed[-1] < alone.trace.losses[0] - 0.5


def test_the_growth_copies_to_the_bit(ranks: list[Found]) -> None:
    """Layers are copied, each expert's units repeated; who reads the copies gets halves."""
    source: State = assemble(SMALL, [found.before for found in ranks])
    target: State = assemble(LARGE, [found.after for found in ranks])
    twice = np.tile(np.arange(32), 2)
    for kind, rows, columns in (("main_param", 1, 0.5), ("exp_avg", 0.5, 1)):
        for layer in (0, 1):
            assert np.array_equal(target[ROUTER, kind][layer], source[ROUTER, kind][0])
            fc1, fc2 = source[FC1, kind][0], source[FC2, kind][0]
            assert np.array_equal(target[FC1, kind][layer], rows * fc1[:, twice])
            assert np.array_equal(target[FC2, kind][layer], columns * fc2[:, :, twice])
    assert source[FC1, "exp_avg"].any()


def test_fresh_experts_have_the_same_bits_on_every_layout(alone: Found, ranks: list[Found]) -> None:
    """And each has its own."""
    one, four = assemble(SMALL, [alone.begun]), assemble(SMALL, [found.begun for found in ranks])
    assert all(np.array_equal(one[name], four[name]) for name in one)
    drawn = one[FC1, "main_param"][0]
    assert drawn.std() == pytest.approx(0.02, rel=0.05)
    assert len({expert.tobytes() for expert in drawn}) == 4


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(UserError, match=r"expert_tensor_parallel_size=1 must be tensor_.*=2 "):
        ParallelConfig(**shared(2, 1, 1))
    few = ParallelConfig(expert_model_parallel_size=8)
    axes = [axis for tensor in logical_tensors(EXPERTS).values() for axis in tensor.axes]
    with pytest.raises(UserError, match="expert_model_parallel_size=8 does not divide the 4"):
        few.check_axes(axes, "stages[0]")
    dense = [axis for tensor in logical_tensors(MODEL).values() for axis in tensor.axes]
    with pytest.raises(UserError, match=r"expert_model_parallel_size=8, but .* no experts"):
        few.check_axes(dense, "stages[0]")
    with pytest.raises(UserError, match=r"expert_model_parallel_size=3 x .* the 4 ranks"):
        run(shared(1, 3), shared(1, 1)).resolve(4)


def test_the_experts_of_a_model_stay() -> None:
    """No key of ``grow`` grows that axis."""
    more = replace(EXPERTS, options={"experts": 8})
    with pytest.raises(UserError, match=r"options\.experts=8 differs from the 4"):
        growth(EXPERTS, more, GrowSection(), target_depth=2, seed=1)
