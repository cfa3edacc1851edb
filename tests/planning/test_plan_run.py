"""The planner: published sizes, its choices, and what it says of them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.run import RunConfig, parse_run
from megatron_grow.config.stages import StageSection
from megatron_grow.cost.devices import DEVICES
from megatron_grow.cost.step_time import Machine
from megatron_grow.growth.forecast import forecast
from megatron_grow.growth.plan import growth
from megatron_grow.inputs.errors import UserError
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.planning.efficiency import Efficiency, read_measured
from megatron_grow.planning.figure import figure
from megatron_grow.planning.plan import RunPlan, plan_run
from megatron_grow.planning.summary import summary
from megatron_grow.planning.text import text
from tests.cost.gpt2 import gpt2

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/gpt2_7b/run.yaml"


def _example(layers: int = 0, **model: Any) -> RunConfig:
    """The 7B example as the paper counts it: 50,304 tokens, and no biases in its norms."""
    config = parse_run(["--config", str(EXAMPLE)])
    return replace(
        config,
        model=replace(config.model, vocab_size=50_304, normalization="RMSNorm", **model),
        stages=[replace(config.stages[0], model={"num_layers": layers}), config.stages[1]],
    )


def _plan(
    config: RunConfig, gpu: str = "h100", gpus: int = 64, efficiency: float = 0.4, **more: Any
) -> RunPlan:
    device = DEVICES[gpu]
    network = device.network or 50e9
    machine = Machine(device, network, efficiency, link_efficiency=0.8, latency=20e-6)
    return plan_run(
        config, gpu, gpus, machine, lambda model: Efficiency(efficiency, "told"), **more
    )


@pytest.mark.parametrize(
    ("layers", "parameters", "whole", "blocks"),
    [(0, 157_682_688, 0.218, 0.200), (1, 270_935_040, 0.231, 0.213)],
)
def test_published_sizes_and_savings(
    layers: int, parameters: int, whole: float, blocks: float
) -> None:
    """Bu 2025, of 7B grown at 0.8: parameters to the digit, FLOPs as far as they are printed."""
    found = summary(_plan(_example(layers)))
    assert [stage["parameters"] for stage in found["stages"]] == [parameters, 6_952_823_808]
    tokens = 100_000 * 2048 * 1024
    assert found["tokens"] == tokens
    assert found["flops"]["total"]["fixed_size"] == 6 * 6_952_823_808 * tokens
    for part, share in (("total", whole), ("blocks", blocks)):
        flops = found["flops"][part]
        assert round(flops["run"] / flops["fixed_size"], 3) == share


def test_time_and_money_of_a_run_that_only_computes() -> None:
    """Data-parallel ranks of one node without any communication left over: 40 % of the peak."""
    config = _example(num_layers=12)
    config = replace(config, stages=[], train=replace(config.train, train_iters=10))
    plan = _plan(config, gpus=8, price=2.0)
    flops = 12 * (6 * 12 * 3072**2 + 12 * 3072 * 1024) + 6 * 3072 * 50_304
    seconds = 10 * 2048 * 1024 * flops / (8 * 989.5e12 * 0.4)
    [stage] = plan.stages
    assert stage.found.chosen.time.compute * 10 == pytest.approx(seconds)
    assert plan.seconds == pytest.approx(seconds, rel=0.01)
    assert summary(plan)["money"]["run"] == pytest.approx(2 * 8 * plan.seconds / 3600)
    assert plan.seconds == plan.fixed_size_seconds and not plan.growths


def test_the_example_has_the_layouts_that_are_advised() -> None:
    plan = _plan(parse_run(["--config", str(EXAMPLE), "--model.vocab_size", "50257"]))
    for stage in plan.stages:
        assert stage.found.written is not None and stage.found.written.fits
        assert stage.found.written.describe() == stage.found.chosen.describe()


def test_a_stage_without_layers_is_not_cut() -> None:
    plan = _plan(_example())
    parallel = plan.stages[0].found.chosen.step.placement.parallel
    assert parallel.tensor_model_parallel_size == parallel.pipeline_model_parallel_size == 1


def test_a_model_is_cut_that_does_not_fit_otherwise() -> None:
    """13.9 GB of weights and 27.8 GB of gradients are more than 40 GB, halves of them are not."""
    plan = _plan(_example(), gpu="a100-40")
    chosen = plan.stages[1].found.chosen
    parallel = chosen.step.placement.parallel
    assert parallel.tensor_model_parallel_size * parallel.pipeline_model_parallel_size == 2
    assert chosen.peak.total < 0.95 * 40e9
    first, *_ = plan.stages[1].found.against
    assert first.startswith("TP1 PP1 DP64, micro-batch 1: does not fit, 49.")
    assert first.endswith("GB of 38.0 GB")


def test_layers_are_recomputed_where_nothing_else_fits() -> None:
    longer = replace(_example(max_position_embeddings=32_768), stages=[])
    train = replace(longer.train, seq_length=32_768, global_batch_size=32, micro_batch_size=1)
    plan = _plan(replace(longer, train=train), gpu="a100-40", gpus=8)
    assert plan.train.recompute_granularity == "full"
    assert plan.seconds_otherwise is None
    said = text(plan)
    assert "Activations are recomputed: kept, the run would fit in no layout." in said
    assert "recompute_granularity: full" in said


def test_what_cannot_be_planned_says_why() -> None:
    with pytest.raises(UserError, match=r"^--num-gpus=1: the model fits in no layout on so many"):
        _plan(_example(), gpus=1)
    with pytest.raises(UserError, match=r"global_batch_size=2048 over --num-gpus=3$"):
        _plan(_example(), gpus=3)
    config = _example()
    with pytest.raises(UserError, match=r"^train\.precision=fp32: a plan knows"):
        _plan(replace(config, train=replace(config.train, precision="fp32")))


def test_the_advice_is_a_run_file_that_resolves() -> None:
    config = _example()
    plan = _plan(config, gpu="a100-40")
    written = yaml.safe_load(summary(plan)["run_file"])
    sections = [
        replace(section, **advised)
        for section, advised in zip(config.stages, written["stages"], strict=True)
    ]
    for stage, planned in zip(
        replace(config, stages=sections).resolve(64), plan.stages, strict=True
    ):
        step = planned.found.chosen.step
        assert (stage.parallel, stage.batch) == (step.placement.parallel, step.batch)


@pytest.mark.parametrize(
    ("source", "depth", "exact"),
    [(0, "random", True), (2, "copying_stack", True), (1, "random", False)],
)
def test_carried_bytes_against_those_of_the_growth(source: int, depth: str, exact: bool) -> None:
    sections = [
        StageSection(until=0.5, model={"num_layers": source}),
        StageSection(grow=GrowSection(depth=depth)),
    ]
    config = replace(_example(), model=gpt2(4, 256), stages=sections)
    plan = _plan(config, gpus=4)
    before, after = (planned.stage for planned in plan.stages)
    told = forecast(
        growth(
            before.model,
            after.model,
            after.grow,
            target_depth=4,
            seed=1,
            optimizer=optimizer_of(config.optimizer),
        )
    )
    [found] = plan.growths
    assert found.carried_bytes == told.carried_bytes or not exact
    assert found.carried_bytes >= told.carried_bytes


def test_measured_efficiency_is_that_of_a_like_model(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    rows = {
        "a": {"shape": "7B", "layers": 0, "parameters": 158e6, "mfu": 0.3, "recompute": True},
        "b": {"shape": "7B", "layers": 30, "parameters": 3.5e9, "mfu": 0.45, "recompute": True},
        "c": {"shape": "124M", "layers": 12, "parameters": 124e6, "mfu": 0.35, "recompute": False},
        "d": {"shape": "7B", "layers": 1, "left_out": "no time"},
    }
    path.write_text(json.dumps({"device": {"name": "NVIDIA H200"}, "parts": {"speed": rows}}))
    measured = read_measured(path)
    assert measured.of(gpt2(0, 3072)) == Efficiency(0.3, "measured on NVIDIA H200: 7B, 0 layers")
    # Three of four passes through a layer are counted.
    assert measured.of(gpt2(60, 3072)).share == pytest.approx(0.6)
    assert measured.of(gpt2(12, 768)).share == 0.35
    with pytest.raises(UserError, match="has no speed of a model of 1 layers"):
        measured.of(gpt2(1, 3072))
    path.write_text("{}")
    with pytest.raises(UserError, match=r"is not gpu\.json"):
        read_measured(path)


def test_every_layout_of_the_stages_is_told() -> None:
    plan = _plan(_example(1), gpus=256, price=2.5)
    said = text(plan)
    for planned in plan.stages:
        assert planned.found.chosen.describe() in said
    assert figure(plan).startswith(b"\x89PNG")
    costs = [plan.gpu_hours(each.seconds) for each in plan.stages]
    assert sum(costs) == pytest.approx(plan.gpu_hours(plan.seconds), rel=0.01)
    assert all(a.stage.last_step == b.stage.first_step for a, b in pairwise(plan.stages))


PROGRAM = """
import runpy, sys, time
sys.argv = ["plan_run.py", *sys.argv[1:]]
try:
    runpy.run_path("tools/plan_run.py", run_name="__main__")
except SystemExit as end:
    assert not end.code
loaded = {"torch", "megatron.core", "numpy", "matplotlib"} & {*sys.modules}
print(sorted(loaded), time.process_time(), file=sys.stderr)
"""


def test_the_command_is_quick_and_light() -> None:
    """In under two seconds of a core, for the 7B run on 256 GPUs."""
    arguments = [EXAMPLE, "--gpu", "h100", "--num-gpus", "256", "--model.vocab_size", "50257"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
        check=True,
    )
    assert done.stdout.startswith("# gpt2_7b on 256 h100\n") and "ASSUMED" in done.stdout
    loaded, seconds = done.stderr.rsplit(" ", 1)
    assert loaded == "[]" and float(seconds) < 2
