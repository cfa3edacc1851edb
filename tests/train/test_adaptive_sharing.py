"""Runs whose layers share their parameters until their gradients no longer agree (SWE)."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import yaml

from megatron_grow.checkpoint.open import open_reader
from megatron_grow.checkpoint.record import StageEnd, read_record
from megatron_grow.state.boxes import full
from tests.corpus import write_corpus
from tests.distributed import run_ranks
from tests.train.command import losses, rows
from tests.train.jobs import run_all

ITERS, BOUND, EVERY, TIMES, LAYERS = 20, 18, 1, 2, 4
SPLIT_RHO, AMID = 0.8, 3
"""And a step between two splits."""
PP2 = {"pipeline_model_parallel_size": 2}
LAST_ALONE = f"--checkpoint.save_interval={ITERS}"
"""Of a run that no other goes on from, only the last state is read."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    run = {
        "run": {"seed": 5},
        "model": {
            "num_layers": LAYERS,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
            "init_method_std": 0.1,  # layers agree less
        },
        "train": {
            "train_iters": ITERS,
            "seq_length": 32,
            "global_batch_size": 4,
            "log_interval": 1,
            "eval_iters": 0,
        },
        "optimizer": {"lr": 1e-3},
        "schedule": {"lr_warmup_fraction": 0.0},
        "data": {"train_data_path": [write_corpus(directory)], "split": "100,0,0"},
        "checkpoint": {"save_interval": 1},
        "logging": {"tensorboard": False},
    }
    (directory / "run.yaml").write_text(yaml.safe_dump(run))
    return directory


def unsharing(until: Any, *methods: dict[str, Any], **layout: Any) -> list[str]:
    """Layers that are one, and then not."""
    first = {"until": until, "model": {"layer_sharing": f"1x{LAYERS}"}, "methods": methods}
    return [_stages({**first, "parallel": layout}, {"grow": {"depth": "unshare"}})]


def adaptive(rho: float, **layout: Any) -> list[str]:
    method = {"name": "end_sharing", "every": EVERY, "rho": rho, "times": TIMES}
    return unsharing({"at_most": BOUND}, method, **layout)


def splitting(rho: float, **layout: Any) -> list[str]:
    method = {"name": "split_sharing", "layer_sharing": f"1x{LAYERS}", "every": EVERY, "rho": rho}
    return [_stages({"methods": [method], "parallel": layout})]


def _stages(*stages: dict[str, Any]) -> str:
    return "--stages=" + json.dumps(stages)


def command(workplace: Path, name: str, *options: str) -> list[str]:
    output = str(workplace / name)
    return ["--config", str(workplace / "run.yaml"), "--run.output_dir", output, *options]


def resumed(workplace: Path, name: str, step: int) -> list[str]:
    load = workplace / name / "checkpoints" / f"iter_{step:07d}"
    return [f"--checkpoint.load={load}", LAST_ALONE]


def measured(workplace: Path, name: str) -> dict[int, list[float]]:
    """Correlations by step."""
    return {
        row["step"]: row["correlations"]
        for row in rows(workplace, name)
        if row.get("event") == "gradient_correlation"
    }


def ends(seen: dict[int, list[float]], rho: float) -> int:
    """The step in which most pairs are below ``rho`` for the second time running."""
    most = {step: median(values) < rho for step, values in seen.items()}  # of three pairs
    return next((step for step in most if most[step] and most.get(step - EVERY)), BOUND)


@pytest.fixture(scope="module")
def known(workplace: Path) -> tuple[float, int]:
    """What gradients correlate by where nothing ends the stage; the end for a rho in between."""
    probe = command(workplace, "probe", *adaptive(-1.0), LAST_ALONE)
    [[(code, errors, _)]] = run_ranks(1, run_all, [probe])
    assert code == 0, errors
    seen = measured(workplace, "probe")
    assert list(seen) == list(range(EVERY, BOUND + 1, EVERY))
    candidates = [sum(two) / 2 for two in pairwise(sorted(map(median, seen.values())))]
    return next((rho, end) for rho in candidates if TIMES < (end := ends(seen, rho)) < BOUND)


@pytest.fixture(scope="module")
def done(workplace: Path, known: tuple[float, int]) -> None:
    rho, end = known
    rule, split = adaptive(rho), splitting(SPLIT_RHO)
    commands = {
        "adaptive": rule,
        "fixed": [*unsharing(end), LAST_ALONE],
        "split": split,
        **{f"again {n}": [*rule, *resumed(workplace, "adaptive", end - n)] for n in (0, 1, 2)},
        "again on PP2": [*adaptive(rho, **PP2), *resumed(workplace, "adaptive", end - 1)],
        "split on": [*split, *resumed(workplace, "split", AMID)],
        "split on PP2": [*splitting(SPLIT_RHO, **PP2), *resumed(workplace, "split", AMID)],
    }
    ranks = run_ranks(2, run_all, [command(workplace, *each) for each in named(commands)])
    assert [(name, code) for name, (code, *_) in zip(commands, ranks[0], strict=True)] == [
        (name, 0) for name in commands
    ], [errors for _, errors, _ in ranks[0] if errors]


def named(commands: dict[str, list[str]]) -> list[tuple[str, ...]]:
    return [(name, *options) for name, options in commands.items()]


def test_the_end_is_where_the_series_says(workplace: Path, known, done) -> None:
    rho, end = known
    below = [step for step, values in measured(workplace, "probe").items() if median(values) < rho]
    assert min(below) < end - 1, "a measurement that was above has begun the count anew"
    (row,) = (row for row in rows(workplace, "adaptive") if row.get("event") == "stage_end")
    assert (row["step"], row["last_step"]) == (end, end)
    assert f"correlate by less than {rho:g}" in row["reason"] and "2 times running" in row["reason"]
    record = read_record(workplace / "adaptive" / "checkpoints" / f"iter_{end:07d}")
    assert record.stage_ends == [StageEnd(0, end, row["reason"])]
    assert record.methods["methods[0]"] == {"below": TIMES}
    probe = measured(workplace, "probe")
    for step, values in measured(workplace, "adaptive").items():  # on two data-parallel ranks
        assert values == pytest.approx(probe[step], abs=1e-5)


def test_it_is_a_stage_of_that_length(workplace: Path, known, done) -> None:
    assert losses(workplace, "adaptive") == losses(workplace, "fixed")


@pytest.mark.parametrize("back", [0, 1, 2])
def test_a_resume_repeats_it(workplace: Path, known, done, back: int) -> None:
    _, end = known
    whole, again = (
        [row for row in rows(workplace, name) if row["step"] > end - back and "event" in row]
        for name in ("adaptive", f"again {back}")
    )
    timeless = [{**row, "pause_seconds": 0.0, "groups_seconds": 0.0} for row in whole]
    assert [{**row, "pause_seconds": 0.0, "groups_seconds": 0.0} for row in again] == timeless
    rest = {step: x for step, x in losses(workplace, "adaptive").items() if step > end - back}
    assert losses(workplace, f"again {back}") == rest


def test_another_layout_repeats_it(workplace: Path, known, done) -> None:
    _, end = known
    (row,) = (row for row in rows(workplace, "again on PP2") if row.get("event") == "stage_end")
    assert row["last_step"] == end
    rest = {step: x for step, x in losses(workplace, "adaptive").items() if step >= end}
    assert losses(workplace, "again on PP2") == pytest.approx(rest, rel=1e-4)


def memory(workplace: Path, name: str, step: int = ITERS) -> dict[str, Any]:
    path = workplace / name / "checkpoints" / f"iter_{step:07d}"
    return read_record(path).methods["methods[0]"]


def test_splits_are_resumed(workplace: Path, done) -> None:
    whole = memory(workplace, "split")
    steps = [split["step"] for split in whole["splits"]]
    assert min(steps) < AMID < max(steps)
    rest = {step: x for step, x in losses(workplace, "split").items() if step > AMID}
    assert losses(workplace, "split on") == rest and memory(workplace, "split on") == whole
    assert losses(workplace, "split on PP2") == pytest.approx(rest, rel=1e-4)
    assert memory(workplace, "split on PP2") == whole


def test_splits_follow_the_series(workplace: Path, done) -> None:
    """And a checkpoint has one layer for each: the same to the bit where they are of one group."""
    groups = [[*range(LAYERS)]]
    for row in rows(workplace, "split"):
        if row.get("event") != "gradient_correlation":
            continue
        expected = [[first, first + 1] for group in groups for first in group[:-1]]
        assert row["pairs"] == expected
        cuts = [
            first
            for (first, _), x in zip(expected, row["correlations"], strict=True)
            if x < SPLIT_RHO
        ]
        for cut in cuts:
            parts = [
                [[n for n in group if n <= cut], [n for n in group if n > cut]] for group in groups
            ]
            groups = [part for both in parts for part in both if len(part) > 1]
        assert memory(workplace, "split", row["step"])["groups"] == groups
        source = open_reader(workplace / "split" / "checkpoints" / f"iter_{row['step']:07d}")
        for key, tensor in source.tensors.items():
            for kind in source.kinds(key) if tensor.stacked else ():
                values = source.read(key, kind, full(tensor.shape))
                for first, *others in groups:
                    assert all(values[first].equal(values[other]) for other in others)
