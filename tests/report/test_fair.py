"""Comparisons over seeds and lengths, of runs whose losses and costs are known in closed form."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from math import log
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import yaml
from matplotlib.axes import Axes
from rich.console import Console

from megatron_grow.inputs.errors import UserError
from megatron_grow.report.fair_summary import fair_tables, write_fair_report
from megatron_grow.report.groups import check_one_recipe, grouped
from megatron_grow.report.runs import load_run
from tests.report.curves import write_run

ROOT = Path(__file__).parents[2]


def law(steps: int) -> float:
    """Final loss of fixed-size runs: a line over the logarithm of their cost, 5 a step."""
    return 6 - 0.3 * log(5 * steps)


def ending(final: float) -> Callable[[int], float]:
    """A curve that falls in a line from far above to ``final`` after 1,000 steps."""
    return lambda step: final + (1000 - step) / 100


def lengths(root: Path, *steps: int) -> list[Path]:
    """Finished fixed-size runs."""
    return [write_run(root / f"full_{n}", n, lambda step, n=n: law(n) + n - step) for n in steps]


def report(runs: list[Path], fixed: list[Path], output: Path, **options: Any) -> dict[str, Any]:
    return write_fair_report(runs, fixed, output, **options)


def grown(root: Path, final: float, name: str = "grown", **options: Any) -> Path:
    """A run of 1,000 steps that grows after 800: it costs 1,800, and 800 in its layers."""
    return write_run(root / name, 1000, ending(final), grow_at=800, **options)


def test_saving_at_equal_loss_is_that_of_the_law(tmp_path: Path) -> None:
    # Its loss is that of a fixed-size run that costs 2,400 (480 steps, 1,920 in layers).
    run = grown(tmp_path, 6 - 0.3 * log(2400))
    summary = report([run], lengths(tmp_path, 1000, 200, 450), tmp_path / "report")
    equal = summary["grown"][0]["equal_loss"]
    assert equal["flops_total"]["flops"] == pytest.approx(2400)
    assert equal["flops_total"]["saved_percent"] == pytest.approx(25)
    assert equal["flops_block"]["flops"] == pytest.approx(1920)
    assert equal["flops_block"]["saved_percent"] == pytest.approx(100 * (1 - 800 / 1920))
    assert [group["steps"] for group in summary["fixed_size"]] == [200, 450, 1000]
    assert json.loads((tmp_path / "report" / "summary.json").read_text()) == summary


@pytest.mark.parametrize(("loss", "beyond"), [(law(2000), "below"), (law(100), "above")])
def test_nothing_is_extrapolated(tmp_path: Path, loss: float, beyond: str) -> None:
    summary = report([grown(tmp_path, loss)], lengths(tmp_path, 200, 1000), tmp_path / "report")
    equal = summary["grown"][0]["equal_loss"]["flops_total"]
    assert equal["beyond"] == beyond and equal["flops"] is equal["saved_percent"] is None
    assert "beyond the runs" in printed(summary)


def test_one_length_gives_no_curve(tmp_path: Path) -> None:
    runs = [grown(tmp_path, law(900)), grown(tmp_path, law(1100), "better", log_interval=1)]
    text = printed(report(runs, lengths(tmp_path, 1000), tmp_path / "report"))
    assert text.count("one length gives no curve; worse than it") == 2  # by both FLOPs
    assert text.count("one length gives no curve; better than it") == 2
    assert "beyond" not in text


def test_equal_flops_needs_a_finished_run_of_that_cost(tmp_path: Path) -> None:
    run = grown(tmp_path, 1.01 * law(360))
    fixed = lengths(tmp_path, 355, 1000)
    found = report([run], fixed, tmp_path / "a")["grown"][0]["equal_flops"]
    # 1,800 of 5 x 355 = 1,775; in the layers nothing costs about 800.
    assert found["flops_total"]["steps"] == 355
    assert found["flops_total"]["costs_more_percent"] == pytest.approx(100 * (1800 / 1775 - 1))
    gap = 100 * (1.01 * law(360) / law(355) - 1)
    assert found["flops_total"]["gap_percent"] == pytest.approx(gap)
    assert found["flops_block"] is None
    strict = report([run], fixed, tmp_path / "b", cost_tolerance=0.01)["grown"][0]
    assert strict["equal_flops"]["flops_total"] is None
    stopped = write_run(tmp_path / "stopped", 500, ending(4.0), done=360)
    with pytest.raises(UserError, match=r"stopped has been evaluated up to step 360 of 500; only"):
        report([run], [stopped], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_seeds_are_one_run_with_a_spread(tmp_path: Path) -> None:
    losses, fixed = [3.6, 3.7, 3.5], [3.4, 3.45]
    runs = [grown(tmp_path / f"seed{i}", loss, seed=i) for i, loss in enumerate(losses)]
    runs += [
        write_run(tmp_path / f"seed{i}/full", 1000, ending(loss), seed=i)
        for i, loss in enumerate(fixed)
    ]
    summary = report(runs, [], tmp_path / "report")
    (ours,), (theirs,) = summary["grown"], summary["fixed_size"]
    assert (ours["name"], ours["seeds"], theirs["seeds"]) == ("grown", [0, 1, 2], [0, 1])
    assert ours["val_loss"] == pytest.approx(
        {"n": 3, "mean": 3.6, "min": 3.5, "max": 3.7, "std": stdev(losses)}
    )
    assert theirs["val_loss"]["std"] is None, "of two there is none"
    equal = ours["equal_steps"]
    assert equal["gap_percent"] == pytest.approx(100 * (3.6 / 3.425 - 1))
    assert equal["clear"] is True
    assert equal["fewer_percent"] == pytest.approx({"flops_total": 64, "flops_block": 80})
    # 800 x 1 s + 200 x 3 s of 3,000 s
    assert equal["less_time_percent"] == pytest.approx(100 * (1 - 1400 / 3000))


def test_what_each_seed_saves(tmp_path: Path) -> None:
    """Losses of runs that cost 2,000 and 2,880; their mean is that of the geometric mean, 2,400."""
    runs = [
        grown(tmp_path / f"seed{cost}", 6 - 0.3 * log(cost), seed=cost) for cost in (2000, 2880)
    ]
    summary = report(runs, lengths(tmp_path, 200, 1000), tmp_path / "report")
    equal = summary["grown"][0]["equal_loss"]["flops_total"]
    assert equal["saved_percent"] == pytest.approx(25)
    assert equal["saved_percent_of_seeds"] == pytest.approx([10, 37.5])
    assert "25.0 % saved (10 % saved .. 38 % saved)" in printed(summary)


def test_a_difference_within_the_spread_is_said_to_be(tmp_path: Path) -> None:
    runs = [grown(tmp_path / f"seed{i}", loss, seed=i) for i, loss in enumerate([3.5, 3.7])]
    runs += [
        write_run(tmp_path / f"seed{i}/full", 1000, ending(loss), seed=i)
        for i, loss in enumerate([3.4, 3.55])
    ]
    summary = report(runs, [], tmp_path / "report")
    assert summary["grown"][0]["equal_steps"]["clear"] is False
    assert "within the spread" in printed(summary)


def test_a_worse_loss_saves_nothing(tmp_path: Path) -> None:
    """64 % fewer FLOPs at equal steps; 18 % more than a fixed-size run of that loss."""
    run = grown(tmp_path, 6 - 0.3 * log(1525))
    summary = report([run], lengths(tmp_path, 200, 1000), tmp_path / "report")
    text = printed(summary)
    assert "64.0 % less" in text and "18.0 % more" in text
    assert "64.0 % saved" not in text
    as_good = report([run], lengths(tmp_path / "b", 200, 1000), tmp_path / "c", tolerance=0.2)
    assert "64.0 % saved" in printed(as_good)


def test_head_start_and_mixing_time_in_steps(tmp_path: Path) -> None:
    """After 400 steps it goes on as the twin did after 150, and 60 steps late: h = 150.

    The twin is evaluated at every 20th step, the rates fall from step 900 on.
    """

    def twin(step: float) -> float:
        return 5 - step / 500 if step <= 900 else 3.2 - (step - 900) / 100

    def ours(step: int) -> float:
        return 4.9 if step <= 400 else 2.5 if step > 900 else twin(150 + step - 400)

    runs = [write_run(tmp_path / "grown", 1000, ours, grow_at=400)]
    fixed = [write_run(tmp_path / "fixed", 1000, twin)]
    (found,) = report(runs, fixed, tmp_path / "a")["grown"]
    assert found["head_start_steps"]["mean"] == pytest.approx(150)
    # 4.9, the loss before the growth, is the twin's after 50 steps: 100 were gained.
    assert found["lost_in_growing_steps"]["mean"] == pytest.approx(-100)
    # The first evaluation at which it is no more than 1 % worse is of step 920.
    assert found["mixing_time_steps"]["mean"] == 520
    # 5 - 350 / 500 against 5 - 600 / 500: at step 600 it is 13 % above, at 800 15 %.
    (early,) = report(runs, fixed, tmp_path / "b", tolerance=0.14)["grown"]
    assert early["mixing_time_steps"]["mean"] == 20
    cosine = write_run(tmp_path / "other/grown", 1000, ours, grow_at=400, decay=0.98)
    (unknown,) = report([cosine], fixed, tmp_path / "c")["grown"]
    assert unknown["head_start_steps"] is None, "its rate is constant at no step after the growth"


def test_seeds_that_diverge_are_counted(tmp_path: Path) -> None:
    runs = [grown(tmp_path / f"seed{i}", 3.6, seed=i) for i in (1, 2)]
    with (runs[1] / "metrics.jsonl").open("a") as file:
        row = {"event": "not_finite", "step": 1000, "action": "stop", "found": "the loss"}
        file.write(json.dumps(row) + "\n")
    summary = report(runs, lengths(tmp_path, 200, 1000), tmp_path / "report")
    (found,) = summary["grown"]
    assert (found["diverged"], found["val_loss"]["n"]) == (1, 1)
    assert "1 of 2 diverged" in printed(summary)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seq_length": 2048}, "differ in train.seq_length; name fixed-size runs of one recipe"),
        ({"eval_iters": 5}, "differ in train.eval_iters"),
        ({"log_interval": 5}, "are both fixed-size runs of 1000 steps, and not two seeds of one"),
    ],
)
def test_what_is_compared_with_must_be_one_recipe(
    tmp_path: Path, change: dict[str, int], said: str
) -> None:
    fixed = lengths(tmp_path, 200, 1000)
    other = write_run(tmp_path / "other", 1000, ending(3.0), **change)
    with pytest.raises(UserError, match=said):
        report([grown(tmp_path, 3.6)], [*fixed, other], tmp_path / "report")


def test_a_record_of_an_older_version_lacks_fields(tmp_path: Path) -> None:
    """What is not in it was as it is by default: seeds are one run, lengths one recipe."""
    old = write_run(tmp_path / "old", 200, law, seed=1, grow_at=100)
    new = write_run(tmp_path / "new", 200, law, seed=2, grow_at=100)
    short = write_run(tmp_path / "short", 100, law)
    for directory in (old, short):
        record = yaml.safe_load((directory / "config.yaml").read_text())
        del record["parametrization"], record["train"]["max_loss"], record["model"]["softmax_scale"]
        for stage in record["stages"]:
            del stage["release"], stage["lr"]
        (directory / "config.yaml").write_text(yaml.safe_dump(record))
    [group] = grouped([load_run(old), load_run(new)])
    assert [run.seed for run in group.runs] == [1, 2]
    check_one_recipe(grouped([load_run(short), load_run(write_run(tmp_path / "long", 300, law))]))


def test_what_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    run, fixed = grown(tmp_path, 3.6), lengths(tmp_path, 200, 1000)
    with pytest.raises(UserError, match=r"the same run twice, of seed 1; name one of them$"):
        report([run, run], fixed, tmp_path / "report")
    with pytest.raises(UserError, match=r"^all of these 2 runs kept their size; name those"):
        report(fixed, [], tmp_path / "report")
    with pytest.raises(UserError, match=r"^all of these 1 runs grew"):
        report([run], [], tmp_path / "report")


def test_the_picture_says_what_the_table_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels, plot, errorbar = [], Axes.plot, Axes.errorbar
    for name, draw in (("plot", plot), ("errorbar", errorbar)):
        monkeypatch.setattr(
            Axes,
            name,
            lambda *a, draw=draw, **k: labels.append(k.get("label")) or draw(*a, **k),
        )
    run = grown(tmp_path, 6 - 0.3 * log(2400))
    dear = grown(tmp_path, 6 - 0.3 * log(1525), "dear", log_interval=1)
    great = grown(tmp_path, law(2000), "great", log_interval=2)
    fixed = lengths(tmp_path, 200, 1000)
    summary = report([run, dear, great], fixed, tmp_path / "report")
    text = printed(summary)
    for name, said in (
        ("grown", "25.0 % saved"),
        ("dear", "18.0 % more"),
        ("great", "beyond the runs, better than all"),
    ):
        assert f"{name}: {said}" in labels and said in text
    for name in ("loss.png", "loss_over_compute.png"):
        assert (tmp_path / "report" / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def printed(summary: dict[str, Any]) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(*fair_tables(summary))
    return console.file.getvalue()


def test_command_line(tmp_path: Path) -> None:
    runs = [grown(tmp_path, law(500)), *lengths(tmp_path, 200, 1000)]
    tool = [sys.executable, str(ROOT / "tools" / "compare_runs.py"), *map(str, runs)]
    done = subprocess.run(
        [*tool, "--output", str(tmp_path / "report")],
        capture_output=True,
        text=True,
        timeout=600,
        env={"COLUMNS": "120"},
    )
    assert done.returncode == 0, done.stderr
    # It costs 1,800 and is as good as what costs 2,500.
    assert "28.0 % saved" in done.stdout
    assert (tmp_path / "report" / "summary.json").exists()
