"""What a family costs, against the closed form of doubling sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.release import ReleaseSection
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import RunSection, ScheduleSection
from megatron_grow.config.stages import Stage, StageSection
from megatron_grow.cost.flops import flops_at_step
from megatron_grow.inputs.errors import UserError
from megatron_grow.report.family import load_family
from megatron_grow.train.releases import branch_of
from tests.toy import MODEL, run_config

ENDS = (2000, 5000, 11_000, 23_000)
"""Of stages of 1, 2, 4 and 8 layers: each ends when a run of its size, of tokens in proportion to
its layers, would have cost as much. Their layers cost 1, 4, 16 and 64 until then."""


def _run(output_dir: Path, decay_iters: float) -> RunConfig:
    sections = [
        StageSection(
            until=end,
            model={"num_layers": 2**index},
            grow=GrowSection(depth="copying_stack") if index else None,
            release=ReleaseSection(name=f"x{2**index}", decay_iters=decay_iters),
        )
        for index, end in enumerate(ENDS)
    ]
    sections[-1] = replace(sections[-1], until=None, model={})
    config = run_config(*sections, model=replace(MODEL, num_layers=8), train_iters=ENDS[-1])
    return replace(
        config,
        run=RunSection(output_dir=str(output_dir)),
        schedule=ScheduleSection(lr_decay_style="constant"),
    )


def _row(stages: list[Stage], step: int, **more: object) -> dict[str, object]:
    costs = {"flops_total": "total", "flops_block": "blocks"}
    spent = {name: flops_at_step(stages, step, part) for name, part in costs.items()}  # type: ignore[arg-type]
    return {"step": step, "consumed_tokens": step, **spent, **more}


def _write(directory: Path, *rows: dict[str, object]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_family(directory: Path, decay_iters: float) -> Path:
    """The metrics of a finished run of :data:`ENDS`, and of what it released."""
    config = _run(directory, decay_iters)
    stages = config.resolve(1)
    releases = []
    for stage in stages:
        branch = branch_of(config, stages, stage.index, stage.last_step, Path("checkpoint"))
        steps, last = branch.steps, branch.config.train.train_iters
        event = {"event": "release", "name": branch.name, "steps": steps}
        releases.append(_row(stages, stage.last_step, **event))
        resolved = branch.config.resolve(1)
        training = {"loss": 3.0, "step_time": 1.0, "num_layers": stage.model.num_layers}
        _write(
            Path(branch.config.run.output_dir),
            _row(resolved, last, **training),
            _row(resolved, last, val_loss=3.0 - 0.1 * stage.index),
        )
    end = {"loss": 3.0, "step_time": 1.0, "num_layers": 8}
    last = _row(stages, ENDS[-1], **end)
    _write(directory, *releases, last, _row(stages, ENDS[-1], val_loss=2.9))
    return directory


def test_the_closed_form_of_doubling_sizes(tmp_path: Path) -> None:
    """1 - 64 / (1 + 4 + 16 + 64), where branches are too short to count."""
    family = load_family(_write_family(tmp_path / "run", 1))
    layers = [member.flops["flops_block"] for member in family.members]
    assert [size / layers[0] for size in layers] == pytest.approx([1, 4, 16, 64], rel=1e-3)
    assert family.saving("flops_block") == pytest.approx(0.2471, abs=2e-4)


def test_branches_have_their_price(tmp_path: Path) -> None:
    """Each a tenth of the steps before it: 0.1, 0.5, 2.2 and 9.2 of the first member's cost."""
    directory = _write_family(tmp_path / "run", 0.1)
    family = load_family(directory)
    own = [member.own["flops_block"] for member in family.members]
    assert [size / own[0] for size in own] == pytest.approx([1, 5, 22, 92])
    assert family.saving("flops_block") == pytest.approx(1 - (64 + 12) / (85 + 12), rel=1e-12)
    assert [member.loss for member in family.members] == pytest.approx([3.0, 2.9, 2.8, 2.7])
    alone = tmp_path / "alone"
    for member in family.members:
        training = {"loss": 3.0, "step_time": 1.0, "num_layers": 1, "consumed_tokens": 9}
        costs = {"flops_total": 2.5e9, "flops_block": 1e9}
        _write(alone / member.name, {"step": 9, **training, **costs}, {"step": 9, "val_loss": 2.5})
    root = Path(__file__).parents[2]
    command = [sys.executable, root / "tools/compare_family.py", directory, "--alone", alone]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "layers only" in told and "21.6 % saved" in told
    (line,) = (line for line in told.splitlines() if line.startswith("x4"))
    assert line.split()[1:4] == ["11000", "+", "1100"]
    assert line.split()[-4:] == ["2.8000", "2.5e+09", "2.5000", "+12.00%"]


def test_a_trunk_that_goes_on_is_a_member(tmp_path: Path) -> None:
    directory = _write_family(tmp_path / "run", 0.1)
    path = directory / "metrics.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join(row for row in rows if '"x8"' not in row) + "\n")
    family = load_family(directory)
    assert [member.name for member in family.members] == ["x1", "x2", "x4", "trunk"]
    assert family.saving("flops_block") == pytest.approx(1 - (64 + 2.8) / (85 + 2.8), rel=1e-12)


def test_what_is_no_family(tmp_path: Path) -> None:
    directory = _write_family(tmp_path / "run", 0.1)
    branch = directory / "releases/x2/metrics.jsonl"
    training, evaluation = map(json.loads, branch.read_text().splitlines())
    rows = [{**row, "step": row["step"] - 1} for row in (training, evaluation)]
    branch.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=r"x2 is at step 499 of 500: the branch is not finished"):
        load_family(directory)
    with pytest.raises(UserError, match=r"x4 has released no model: no stage of it has"):
        load_family(directory / "releases/x4")
