"""Runs that begin with a checkpoint of stock Megatron-LM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import CheckpointSection, OptimizerSection
from megatron_grow.config.stages import StageSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.train.start import find_start
from tests.checkpoint.stock.checkpoints import save
from tests.checkpoint.stock.models import LLAMA, STEP, layout
from tests.distributed import run_ranks
from tests.toy import TRAIN


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stock") / f"iter_{STEP:07d}"
    run_ranks(1, save, LLAMA, layout(), "fp32", path)
    return path


def run(checkpoint: Path, *stages: StageSection, layers: int = 4) -> RunConfig:
    return RunConfig(
        model=replace(LLAMA, num_layers=layers),
        train=TRAIN,
        optimizer=OptimizerSection(lr=1e-2),
        checkpoint=CheckpointSection(
            save=str(checkpoint.parent / "own"), load=str(checkpoint), start="continue"
        ),
        stages=list(stages),
    )


def test_a_run_goes_on_from_it(checkpoint: Path) -> None:
    config = run(checkpoint)
    _, start, _ = find_start(config, config.resolve(1))
    assert start is not None
    assert (start.step, start.optimizer_step, start.resumes) == (STEP, STEP, True)


def test_a_run_grows_out_of_it(checkpoint: Path) -> None:
    config = run(checkpoint, StageSection(grow=GrowSection(depth="copying_stack")), layers=8)
    _, start, plan = find_start(config, config.resolve(1))
    assert start is not None
    assert (start.step, start.optimizer_step, start.resumes) == (STEP, STEP, False)
    assert start.growths[-1].source_model["num_layers"] == 4
    weights = plan.map("decoder.layers.mlp.linear_fc2.weight", MAIN_PARAM)
    assert weights.terms


def test_another_model_is_refused(checkpoint: Path) -> None:
    config = run(checkpoint, layers=6)
    with pytest.raises(UserError, match=r"another model.*: num_layers=4 \(now 6\); restore"):
        find_start(config, config.resolve(1))
