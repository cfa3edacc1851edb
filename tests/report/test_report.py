"""The report against numbers worked out by hand."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from rich.console import Console

from megatron_grow.inputs.errors import UserError
from megatron_grow.report.comparison import compare
from megatron_grow.report.figures import figure_of
from megatron_grow.report.runs import load_run
from megatron_grow.report.summary import summary_table, write_report

ROOT = Path(__file__).parents[2]

# A step of the small model costs 1 (layers: 0) and takes 1 s; of the large one 5 (4) and 3 s.
SMALL = {"num_layers": 0, "total": 1, "block": 0, "time": 1.0}
LARGE = {"num_layers": 4, "total": 5, "block": 4, "time": 3.0}


def write_run(
    directory: Path,
    val_loss: dict[int, float],
    *,
    grow_at: int = 0,
    growth_rows: bool = True,
    log_interval: int = 10,
    tokens: int = 64,
    accuracy: dict[int, float] | None = None,
    **growth: object,
) -> Path:
    """100 steps of ``tokens`` that log and evaluate; the model is small until ``grow_at``.

    ``accuracy`` is that of masked tokens; ``growth`` is in the growth's row.
    """
    rows, total, block = [], 0, 0
    for step in range(1, 101):
        model = SMALL if step <= grow_at else LARGE
        total, block = total + model["total"], block + model["block"]
        if step % log_interval == 0:
            rows.append(
                {
                    "step": step,
                    "stage": int(step > grow_at > 0),
                    "num_layers": model["num_layers"],
                    "loss": 3.0,
                    "consumed_tokens": tokens * step,
                    "flops_total": total,
                    "flops_block": block,
                    "step_time": model["time"],
                }
            )
        if step in val_loss:
            rows.append({"step": step, "val_loss": val_loss[step]})
            if accuracy:
                rows[-1]["val_masked_lm_accuracy"] = accuracy[step]
        if step == grow_at and growth_rows:
            rows.append(
                {
                    "event": "growth",
                    "step": step,
                    "stage": 1,
                    "from_layers": 0,
                    "to_layers": 4,
                    "pause_seconds": 10.0,
                    "val_loss_before": val_loss[step],
                    "val_loss_after": val_loss[step] + 1,
                    **growth,
                }
            )
    directory.mkdir()
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


GROWN = {"step": 40, "from_layers": 0, "to_layers": 4, "what": "0 -> 4 layers"}
FIXED_SIZE = {20: 5.0, 40: 4.0, 60: 3.0, 80: 2.5, 100: 2.0}
PROGRESSIVE = {20: 5.5, 40: 5.0, 60: 3.6, 80: 2.52, 100: 2.01}


@pytest.fixture
def runs(tmp_path):
    """The progressive run, which grows after 40 steps, and its twin."""
    return (
        write_run(tmp_path / "progressive", PROGRESSIVE, grow_at=40),
        write_run(tmp_path / "fixed", FIXED_SIZE),
    )


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
