"""What runs measured beside the loss of their validation text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from megatron_grow.report.comparison import compare
from megatron_grow.report.figures import figure_of
from megatron_grow.report.runs import load_run
from megatron_grow.report.summary import summary_table, write_report
from tests.report.twins import FIXED_SIZE, PROGRESSIVE, write_run

RISING = {20: 0.1, 40: 0.2, 60: 0.3, 80: 0.375, 100: 0.4}


@pytest.fixture
def measured(tmp_path):
    """Two runs that measured an accuracy, one of them also what the other did not."""
    before_and_after = {"val_masked_lm_accuracy_before": 0.15, "val_masked_lm_accuracy_after": 0.05}
    rising = {step: 0.95 * value for step, value in RISING.items()}
    ours = write_run(tmp_path / "a", PROGRESSIVE, grow_at=40, accuracy=rising, **before_and_after)
    twin = write_run(tmp_path / "b", FIXED_SIZE, accuracy=RISING)
    path = twin / "metrics.jsonl"
    found = [json.loads(line) for line in path.open()]
    more = [row | ({"val_sentence_accuracy": 0.7} if "val_loss" in row else {}) for row in found]
    path.write_text("".join(json.dumps(row) + "\n" for row in more))
    return ours, twin


def test_other_numbers_that_both_runs_have(measured, tmp_path):
    summary = write_report(*measured, tmp_path / "report")
    assert summary["final_gap_percent"] == pytest.approx(0.5), "as without them"
    assert list(summary["others"]) == ["masked_lm_accuracy"]
    ours = load_run(measured[0])
    assert ours.numbers["masked_lm_accuracy"].tolist() == pytest.approx(
        [0.095, 0.15, 0.05, 0.285, 0.35625, 0.38]
    ), "at the growth, before and after it"
    names = sorted(path.name for path in (tmp_path / "report").iterdir())
    assert names == ["loss.png", "loss_vs_flops.png", "masked_lm_accuracy.png", "summary.json"]


def test_an_accuracy_is_compared_in_points(runs, tmp_path):
    ours = write_run(tmp_path / "a", PROGRESSIVE, grow_at=40, accuracy={**RISING, 100: 0.38})
    twin = write_run(tmp_path / "b", FIXED_SIZE, accuracy=RISING)
    columns = [
        list(each.cells) for each in summary_table(compare(*map(load_run, (ours, twin)))).columns
    ]
    row = columns[0].index("final masked lm accuracy")
    assert [column[row] for column in columns[1:]] == ["38.00 %", "40.00 %", "-2.00 points"]


def test_a_loss_of_nothing_has_no_gap(tmp_path):
    """An evaluation that had nothing of a loss says 0."""

    def run(name: str) -> Path:
        directory = write_run(tmp_path / name, FIXED_SIZE)
        path = directory / "metrics.jsonl"
        rows = [json.loads(line) for line in path.open()]
        rows = [row | ({"val_odd_loss": 0.0} if "val_loss" in row else {}) for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return directory

    summary = write_report(run("a"), run("b"), tmp_path / "report")
    columns = [list(each.cells) for each in summary_table(summary).columns]
    row = columns[0].index("final odd loss")
    assert [column[row] for column in columns[1:]] == ["0.0000", "0.0000", "-"]


def test_pictures_show_what_rises_and_where_it_grew(measured, monkeypatch):
    said, limits = [], []
    annotate, set_ylim = Axes.annotate, Axes.set_ylim
    monkeypatch.setattr(
        Axes, "annotate", lambda *a, **k: said.append((a[1], k.get("va"))) or annotate(*a, **k)
    )
    monkeypatch.setattr(Axes, "set_ylim", lambda *a, **k: limits.append(a[1:]) or set_ylim(*a, **k))
    png = figure_of(*map(load_run, measured), ["step", "flops_total"], "masked_lm_accuracy")
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert said.count(("0 → 4 layers", "top")) == 2
    assert ("-2.0 points", "bottom") in said and ("32% saved", "bottom") in said
    bottom, top = limits[0]
    assert bottom < 0.1 and top > 0.4
