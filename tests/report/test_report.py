"""The report against numbers worked out by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from megatron_grow.inputs.errors import UserError
from megatron_grow.report.comparison import compare
from megatron_grow.report.runs import load_run
from megatron_grow.report.summary import summary_table, write_report
from tests.report.twins import FIXED_SIZE, PROGRESSIVE, write_run

ROOT = Path(__file__).parents[2]
GROWN = {"step": 40, "from_layers": 0, "to_layers": 4, "what": "0 -> 4 layers"}


def test_numbers(runs):
    summary = compare(*map(load_run, runs))
    assert summary["final_step"] == 100
    assert summary["final_gap_percent"] == pytest.approx(0.5)
    # 40 x 1 + 60 x 5 = 340 of 500; 60 x 4 = 240 of 400
    assert summary["savings_percent"] == pytest.approx({"flops_total": 32, "flops_block": 40})
    # 40 x 1 s + 60 x 3 s + 10 s pause, of 300 s
    assert summary["wall_time_ratio"] == pytest.approx(230 / 300)
    assert summary["growths"] == [GROWN]
    # step 60: 20 % above; step 80: 0.8 % above
    assert summary["mixing_time_steps"] == 40


def test_a_run_of_fewer_tokens_says_so(runs, tmp_path):
    short = write_run(tmp_path / "short", PROGRESSIVE, grow_at=40, tokens=48)
    summary = write_report(short, runs[1], tmp_path / "report")
    assert summary["progressive"]["consumed_tokens"] == 4800
    assert summary["fixed_size"]["consumed_tokens"] == 6400
    column = list(summary_table(summary).columns[3].cells)
    assert "-25.0 %" in column


def test_equal_flops(runs):
    equal = compare(*map(load_run, runs))["equal_flops"]
    # the twin had spent 340 at step 68: between 3.0 (step 60) and 2.5 (step 80)
    assert equal["flops_total"]["flops"] == 340
    assert equal["flops_total"]["progressive_val_loss"] == pytest.approx(2.01)
    assert equal["flops_total"]["fixed_size_val_loss"] == pytest.approx(2.8)
    assert equal["flops_total"]["gap_percent"] == pytest.approx(100 * (2.01 / 2.8 - 1))
    # and 240 in the layers at step 60
    assert equal["flops_block"]["fixed_size_val_loss"] == pytest.approx(3.0)


def test_a_run_met_before_its_end_is_said_not_to_have_decayed(runs, tmp_path):
    summary = write_report(*runs, tmp_path / "report")
    assert summary["equal_flops"]["flops_total"]["not_decayed"] == "fixed_size"
    progressive, fixed_size = (list(column.cells) for column in summary_table(summary).columns[1:3])
    assert "2.8000, not decayed yet" in fixed_size
    assert progressive.count("2.0100") == 3, "its end, where its rate has decayed"
    difference = summary_table(summary).columns[3].cells
    assert not any(cell.startswith("-28") for cell in difference), "2.01 is no 28 % below 2.8"
    alike = compare(load_run(runs[1]), load_run(runs[1]))["equal_flops"]["flops_total"]
    assert alike["not_decayed"] is None


def test_runs_that_cost_as_much_are_compared_at_their_ends(tmp_path):
    """500 beside 496 (one step of the small model), and 400 beside 396 in the layers."""
    losses = {1: 6.0, 50: 4.0, 100: 2.0}
    run = write_run(tmp_path / "progressive", losses, grow_at=1)
    twin = write_run(tmp_path / "fixed", {**losses, 100: 2.5})
    close = write_report(run, twin, tmp_path / "a")["equal_flops"]["flops_total"]
    assert (close["not_decayed"], close["fixed_size_val_loss"]) == (None, 2.5)
    assert close["gap_percent"] == pytest.approx(-20)
    done = compare_runs(run, twin, "--output", tmp_path / "b", "--flops-tolerance", 0.001)
    assert done.returncode == 0, done.stderr
    strict = json.loads((tmp_path / "b" / "summary.json").read_text())["equal_flops"]["flops_total"]
    # It had spent 496 at step 99.2.
    assert strict["not_decayed"] == "fixed_size"
    assert strict["fixed_size_val_loss"] == pytest.approx(2.5 + 1.5 * 0.8 / 50)


def test_what_costs_more_is_not_called_saved(runs, tmp_path):
    """A run that grew but cost as much or more than its twin."""
    slow = write_run(tmp_path / "slow", FIXED_SIZE)
    rows = [json.loads(line) for line in (slow / "metrics.jsonl").open()]
    dear = [
        row | ({"flops_total": 1.02 * row["flops_total"]} if "loss" in row else {}) for row in rows
    ]
    (slow / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dear))
    column = list(summary_table(compare(load_run(slow), load_run(runs[1]))).columns[3].cells)
    assert "2.0 % more" in column and not any(cell.startswith("-2") for cell in column)


def test_fewer_flops_for_a_worse_loss_are_not_called_saved(runs, tmp_path, monkeypatch):
    said, annotate = [], Axes.annotate
    monkeypatch.setattr(Axes, "annotate", lambda *a, **k: said.append(a[1]) or annotate(*a, **k))
    summary = write_report(*runs, tmp_path / "report", tolerance=0.004)  # it ends 0.5 % above
    column = list(summary_table(summary).columns[3].cells)
    assert "32.0 % less" in column and not any("saved" in cell for cell in column)
    assert "32% fewer FLOPs" in said and not any("saved" in text for text in said)


@pytest.mark.parametrize(("tolerance", "mixing"), [(0.25, 20), (0.006, 60), (0.004, None)])
def test_mixing_time_depends_on_the_tolerance(runs, tolerance, mixing):
    summary = compare(*map(load_run, runs), tolerance)
    assert summary["mixing_time_steps"] == mixing


def test_order_does_not_matter_where_one_grew(runs, tmp_path):
    forward = write_report(*runs, tmp_path / "a")
    assert write_report(*reversed(runs), tmp_path / "b") == forward


def test_growth_is_seen_without_its_row(runs, tmp_path):
    bare = write_run(tmp_path / "bare", PROGRESSIVE, grow_at=40, growth_rows=False)
    summary = write_report(runs[1], bare, tmp_path / "report")
    assert summary["progressive"]["output_dir"] == str(bare)
    assert summary["growths"] == [GROWN]
    assert summary["mixing_time_steps"] == 40


def test_flops_between_logged_steps(runs, tmp_path):
    sparse = write_run(tmp_path / "sparse", FIXED_SIZE, log_interval=50)
    equal = compare(load_run(runs[0]), load_run(sparse))["equal_flops"]
    assert equal["flops_total"]["fixed_size_val_loss"] == pytest.approx(2.8)


def test_files_are_whole(runs, tmp_path):
    output = tmp_path / "new" / "report"
    summary = write_report(*runs, output)
    assert json.loads((output / "summary.json").read_text()) == summary
    names = sorted(path.name for path in output.iterdir())
    assert names == ["loss.png", "loss_vs_flops.png", "summary.json"]
    for name in names[:2]:
        assert (output / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert summary_table(summary).row_count == 8


def test_all_that_grew_is_said(runs, tmp_path):
    def grown(name: str, summary: str, from_layers: int = 4) -> list[str]:
        layers = {"from_layers": from_layers, "to_layers": 4, "summary": summary}
        run = write_run(tmp_path / name, PROGRESSIVE, grow_at=40, **layers)
        return [growth.what for growth in load_run(run).growths]

    assert grown(
        "width", "64 -> 128 hidden_size by lemon, 2 -> 4 num_attention_heads by lemon"
    ) == ["64 -> 128 hidden_size, 2 -> 4 num_attention_heads"]
    assert grown("options", "the same model; pool_size: 2 -> 1") == ["pool_size: 2 -> 1"]
    assert grown("layout", "the same model") == []
    compound = "2 -> 4 layers by copying_stack, 16 -> 64 ffn_hidden_size by hypercloning; "
    assert grown("compound", f"{compound}pool_size: 2 -> 1", from_layers=2) == [
        "2 -> 4 layers, 16 -> 64 ffn_hidden_size, pool_size: 2 -> 1"
    ]
    assert grown("kind", "64 -> 128 hidden_size by lemon; the head is no longer tied") == [
        "64 -> 128 hidden_size"
    ]


def test_bad_input_is_named_and_nothing_written(runs, tmp_path):
    shorter = write_run(tmp_path / "shorter", {20: 5.0, 40: 4.0})
    blind = write_run(tmp_path / "blind", {})
    empty = tmp_path / "empty"
    empty.mkdir()
    for other, message in [
        (tmp_path / "missing", "missing is not a directory"),
        (empty, "metrics.jsonl cannot be read"),
        (blind, "no evaluation rows"),
        (shorter, "evaluated at step 100, .* at step 40"),
    ]:
        with pytest.raises(UserError, match=message):
            write_report(runs[0], other, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def compare_runs(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "compare_runs.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env={"PYTHONPATH": str(ROOT), "COLUMNS": "120"},
    )


def test_command_line(runs, tmp_path):
    done = compare_runs(*runs, "--output", tmp_path / "report", "--tolerance", 0.25)
    assert done.returncode == 0, done.stderr
    assert "32.0 % saved" in done.stdout and "+0.50 %" in done.stdout
    assert json.loads((tmp_path / "report" / "summary.json").read_text())["mixing_time_steps"] == 20

    failed = compare_runs(runs[0], tmp_path / "nowhere", "--output", tmp_path / "other")
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1 and "nowhere is not a directory" in failed.stderr


def test_report_needs_no_torch():
    program = "import sys, megatron_grow.report.summary; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600, cwd=ROOT)
