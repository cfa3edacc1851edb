"""Runs that diverged, skipped steps, or have a loss in between that was not finite."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from rich.console import Console

from megatron_grow.report.figures import figure_of
from megatron_grow.report.runs import load_run
from megatron_grow.report.summary import summary_table, write_report
from tests.report.twins import FIXED_SIZE, PROGRESSIVE, write_run


def append(run: Path, *rows: dict) -> Path:
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return run


def cut(run: Path, step: int) -> Path:
    """As if it had ended after ``step``."""
    path = run / "metrics.jsonl"
    lines = [line for line in path.open() if json.loads(line)["step"] <= step]
    path.write_text("".join(lines))
    return run


def not_finite(step: int, action: str) -> dict:
    total, block = 40 + 5 * (step - 40), 4 * (step - 40)
    spent = {"consumed_tokens": 64 * step, "flops_total": total, "flops_block": block}
    found = "the loss is not finite on rank 3"
    return {"event": "not_finite", "step": step, **spent, "found": found, "action": action}


def stopped(directory: Path) -> Path:
    """A run that noticed and stopped."""
    return append(cut(write_run(directory, PROGRESSIVE, grow_at=40), 60), not_finite(67, "stop"))


def ran_on(directory: Path) -> Path:
    """A run of another program, which trained on without a word."""
    run = write_run(directory, {**PROGRESSIVE, 80: None, 100: None}, grow_at=40)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    for row in rows:
        if "loss" in row and row["step"] >= 70:
            row["loss"] = None
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


@pytest.mark.parametrize(("diverge", "step"), [(stopped, 67), (ran_on, 70)])
def test_a_run_that_diverged_is_shown_as_diverged(runs, tmp_path, diverge, step):
    diverged = diverge(tmp_path / "diverged")
    summary = write_report(diverged, runs[1], tmp_path / "report")
    assert json.loads((tmp_path / "report" / "summary.json").read_text()) == summary
    ours = summary["progressive"]
    assert (ours["diverged_at"], ours["val_loss"], ours["skipped_iters"]) == (step, None, 0)
    # 40 steps of the small model, then the large one
    assert ours["flops_total"] == 40 + 5 * (step - 40)
    assert summary["final_gap_percent"] is summary["wall_time_ratio"] is None
    assert summary["savings_percent"] == {"flops_total": None, "flops_block": None}
    assert summary["equal_flops"]["flops_total"]["progressive_val_loss"] is None
    assert summary["fixed_size"]["val_loss"] == FIXED_SIZE[100]
    table = Console(width=120, file=io.StringIO())
    table.print(summary_table(summary))
    assert f"diverged at step {step}" in table.file.getvalue()
    assert "saved" not in table.file.getvalue()
    run = load_run(diverged)
    assert run.steps.tolist() == [20, 40, 40, 60, step]
    assert math.isnan(run.val_loss[-1])


def test_the_picture_says_that_a_run_diverged(runs, tmp_path, monkeypatch):
    labels = []
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda *a, **k: labels.append(k.get("label")) or plot(*a, **k)
    )
    diverged = load_run(stopped(tmp_path / "diverged"))
    png = figure_of(diverged, load_run(runs[1]), ["step", "flops_total"])
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert "progressive, diverged at step 67" in labels and "fixed size" in labels
    assert figure_of(load_run(runs[0]), diverged, ["step"])
    early = append(cut(write_run(tmp_path / "early", FIXED_SIZE), 10), not_finite(12, "stop"))
    assert figure_of(load_run(early), load_run(early), ["step", "flops_block"])


def test_skipped_steps_are_no_divergence(runs, tmp_path):
    run = write_run(tmp_path / "skips", PROGRESSIVE, grow_at=40)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    rows += [not_finite(90, "skip"), not_finite(100, "skip")]
    for row in rows:
        if "loss" in row and row["step"] in (90, 100):
            row["loss"] = None
    rows.sort(key=lambda row: row["step"])
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = write_report(run, runs[1], tmp_path / "report")
    assert summary["progressive"]["diverged_at"] is None
    assert summary["progressive"]["skipped_iters"] == 2
    assert summary["final_gap_percent"] is not None
    assert summary_table(summary).row_count == 9


def test_a_loss_in_between_that_was_not_finite_leaves_a_gap(runs, tmp_path):
    summary = write_report(
        write_run(tmp_path / "gap", {**PROGRESSIVE, 60: None}, grow_at=40), runs[1], tmp_path / "r"
    )
    assert summary["progressive"]["diverged_at"] is None
    run = load_run(tmp_path / "gap")
    assert run.steps.tolist() == [20, 40, 40, 60, 80, 100]
    assert [math.isnan(loss) for loss in run.val_loss] == [False] * 3 + [True] + [False] * 2
    assert summary["final_gap_percent"] == pytest.approx(100 * (PROGRESSIVE[100] / 2.0 - 1))
