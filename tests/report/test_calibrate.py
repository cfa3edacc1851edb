"""Calibration: what short runs it makes, what they say, and a whole one at toy size."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig, parse_run
from megatron_grow.config.sections import ScheduleSection, TrainSection
from megatron_grow.config.stages import StageSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.optim.schedule import LearningRateSchedule
from megatron_grow.report.calibrate import calibration_of, proxies
from megatron_grow.report.runs import load_run
from megatron_grow.rules.calibration import Calibration
from megatron_grow.train.rows import rows_of
from tests.corpus import write_corpus
from tests.report.curves import write_run

ROOT = Path(__file__).parents[2]
CONFIG = RunConfig(
    model=ModelConfig(num_layers=4, hidden_size=16, num_attention_heads=2, vocab_size=300),
    train=TrainSection(train_iters=2000, eval_interval=100, seq_length=16),
    schedule=ScheduleSection(lr_warmup_fraction=0.05, cooldown_iters=10),
    stages=[
        StageSection(
            until={"rule": "calibrated", "calibration": "not/made/yet.yaml", "at_most": 0.9},
            model={"num_layers": 0},
        ),
        StageSection(grow=GrowSection(depth="random"), lr=5e-4),
    ],
)


def test_short_runs_are_the_first_steps_of_the_run() -> None:
    made = proxies(CONFIG, 400, Path("out"), seed=7)
    grown, fixed = made["grown"], made["fixed_size"]
    assert grown.stages[0].until == 100, "a twentieth of 2,000 steps of warm-up"
    assert fixed.stages == [] and fixed.optimizer.lr == 5e-4
    for run in (grown, fixed):
        assert (run.train.train_iters, run.train.eval_interval, run.run.seed) == (400, 10, 7)
        rates, whole = (
            LearningRateSchedule(config.schedule, CONFIG.optimizer, config.train.train_iters)
            for config in (run, replace(CONFIG, schedule=ScheduleSection(lr_warmup_fraction=0.05)))
        )
        assert all(rates.factor(step) == whole.factor(step) for step in range(1, 401))
    directories = {grown.run.output_dir, fixed.run.output_dir}
    assert directories == {"out/grown_seed7", "out/fixed_size_seed7"}
    cosine = replace(CONFIG, schedule=ScheduleSection(lr_decay_style="cosine"))
    short = proxies(cosine, 400, Path("out"), seed=7)["grown"]
    rate = LearningRateSchedule(short.schedule, short.optimizer, 400)
    assert rate.factor(400) > 0.9, "a cosine over 2,000 steps has hardly fallen"


@pytest.mark.parametrize(
    ("change", "steps", "said"),
    [
        ({}, 100, r"^--steps 100 must be more than the 100 of the warm-up, and at most train\."),
        ({}, 2001, "^--steps 2001 must be"),
        ({"stages": []}, 400, "^stages: calibration is for a run that grows once"),
        ({"train": replace(CONFIG.train, eval_iters=0)}, 400, r"^train\.eval_iters=0 measures no"),
    ],
)
def test_what_it_does_not_fit_is_refused(change: dict[str, Any], steps: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        proxies(replace(CONFIG, **change), steps, Path("out"), seed=1)


def short_runs(root: Path, late: dict[int, int]) -> tuple[list[Any], list[Any]]:
    """Pairs of 400 steps; the grown run of a seed is 5 % above until so many steps after 100."""

    def twin(step: int) -> float:
        return 3 + 100 / (step + 50)

    grown = [
        write_run(
            root / f"grown{seed}",
            400,
            lambda step, mixed=mixed: twin(step) * (1.05 if step < 100 + mixed else 1.004),
            grow_at=100,
            seed=seed,
        )
        for seed, mixed in late.items()
    ]
    fixed = [write_run(root / f"fixed{seed}", 400, twin, seed=seed) for seed in late]
    return [load_run(run) for run in grown], [load_run(run) for run in fixed]


def test_mixing_time_becomes_a_growth_step(tmp_path: Path) -> None:
    """Evaluated at every 20th step: mixed after 120 and 200 steps, so not later than that and not
    earlier than 101."""
    found = calibration_of(CONFIG, *short_runs(tmp_path, {1: 120, 2: 200}), tolerance=0.01)
    assert (found.mixing_steps, found.mixing_steps_least) == (200, 100)
    assert (found.growth_step, found.growth_step_most) == (1800, 1900)
    assert found.evidence["mixing_steps"] == [120, 200]
    assert found.evidence["mixing_steps_by_tolerance"] == {0.005: [120, 200], 0.02: [120, 200]}
    assert found.losses[:2] == pytest.approx([3 + 100 / 70, 3 + 100 / 90])
    assert found.flops[:2] == [100.0, 200.0]
    found.write(tmp_path / "found.yaml", "of a test")
    assert Calibration.read(str(tmp_path / "found.yaml")) == found


def test_what_does_not_mix_has_no_growth_step(tmp_path: Path) -> None:
    found = calibration_of(CONFIG, *short_runs(tmp_path, {1: 120, 2: 900}), tolerance=0.01)
    assert found.mixing_steps is found.growth_step is None
    assert found.evidence["mixing_steps"] == [120, None]


def test_a_whole_calibration_and_a_run_by_it(tmp_path: Path) -> None:
    """The tool, twice: the second time nothing is left to run. Then a run that its rule ends."""
    corpus = [write_corpus(tmp_path)]
    run_file = tmp_path / "run.yaml"
    until = {"rule": "calibrated", "calibration": str(tmp_path / "out/calibration.yaml")}
    run = {
        "run": {"output_dir": str(tmp_path / "run")},
        "model": {
            **{"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2},
            "max_position_embeddings": 16,
        },
        "train": {
            **{"train_iters": 24, "seq_length": 16, "global_batch_size": 4, "eval_iters": 1},
            **{"eval_interval": 4, "log_interval": 4},
        },
        "data": {"train_data_path": corpus, "valid_data_path": corpus},
        "logging": {"tensorboard": False, "progress_bar": False},
        "stages": [
            {"until": {**until, "at_most": 23, "every": 1}, "model": {"num_layers": 1}},
            {"grow": {"depth": "copying_stack"}},
        ],
    }
    run_file.write_text(yaml.safe_dump(run))

    def program(*command: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr
        return done

    tool = ["tools/calibrate.py", str(run_file), "--output", str(tmp_path / "out")]
    # An untrained toy's losses differ little: it has mixed at the first evaluation.
    first = program(*tool, "--steps", "6", "--tolerance", "0.5")
    assert "So a run of 24 steps grows after step 23" in first.stdout
    found = Calibration.read(str(tmp_path / "out/calibration.yaml"))
    assert (found.mixing_steps, found.steps) == (1, [1, 2, 3, 4, 5, 6])
    rows = (tmp_path / "out/grown_seed1234/metrics.jsonl").read_text()
    again = program(*tool, "--steps", "6", "--tolerance", "0.5", "--launch", "false")
    assert again.stdout.splitlines()[-1].endswith("calibration.yaml")
    assert (tmp_path / "out/grown_seed1234/metrics.jsonl").read_text() == rows
    parse_run(["--config", str(tmp_path / "out/fixed_size_seed1234.yaml")])
    program("pretrain_progressive.py", "--config", str(run_file))
    end = next(row for row in rows_of(tmp_path / "run") if row.get("event") == "stage_end")
    assert end["last_step"] == 23
    assert end["reason"] == "calibrated: 1 steps are left, and mixing takes 1"
