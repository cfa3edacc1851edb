"""The picture of a run's layers, and what it is drawn from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_grow.inputs.errors import UserError
from megatron_grow.report.layer_figures import layers_figure
from megatron_grow.report.layers import RELATIVE, load_layers

TOOL = Path(__file__).parents[2] / "tools" / "plot_layers.py"
EMBEDDING, FC1 = "embedding.word_embeddings.weight", "decoder.layers.mlp.linear_fc1.weight"
BIAS, GAIN = "decoder.layers.mlp.linear_fc1.bias", "decoder.layers.mlp.linear_fc1.layer_norm_weight"


def row(step: int, stage: int, layers: int) -> dict[str, Any]:
    """In layer i a weight of i + 1, and an update of a tenth of the step by that."""
    each = [float(i + 1) for i in range(layers)]
    of_layers = {FC1: each, BIAS: each} if layers else {}
    updates = {name: [step / 10 for _ in each] for name in of_layers}
    return {
        "event": "layers",
        "step": step,
        "stage": stage,
        "num_layers": layers,
        "weight": {**of_layers, EMBEDDING: 4.0},
        "gain": {GAIN: [1.0] * layers} if layers else {},
        "update": {**updates, EMBEDDING: 1.0},
        "gradient": {**updates, EMBEDDING: None},
        "activation": {"embedding": 0.5, **({"mlp": each} if layers else {})},
        "entropy": {"attention": each} if layers else {},
    }


def write(directory: Path, depths: list[int]) -> Path:
    """A run of a stage for each depth, each of two rows, 10 steps apart."""
    rows: list[dict[str, Any]] = []
    for stage, depth in enumerate(depths):
        if stage:
            what = {"from_layers": depths[stage - 1], "to_layers": depth}
            rows.append({"event": "growth", "step": 20 * stage, "stage": stage, **what})
        rows += [row(20 * stage + done, stage, depth) for done in (10, 20)]
    path = directory / "metrics.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return directory


def test_numbers_of_a_run_that_grows(tmp_path: Path) -> None:
    found = {"signal": "gain", "key": GAIN, "layers": [1], "shares": [0.1], "since": 30}
    with (write(tmp_path, [0, 2]) / "metrics.jsonl").open("a") as file:
        told = {"event": "dying_layers", "step": 40, "stage": 1, "found": [found]}
        file.write(json.dumps(told) + "\n")
    history = load_layers(tmp_path)
    assert history.steps.tolist() == [10, 20, 30, 40]
    assert [(growth.step, growth.what) for growth in history.growths] == [(20, "0 -> 2 layers")]
    by_name = {
        quantity: {each.name: each for each in curves}
        for quantity, curves in history.quantities.items()
    }
    assert [*by_name["weight"]] == ["mlp.linear_fc1", "embedding.word_embeddings"], "no bias"
    relative = by_name[RELATIVE]["mlp.linear_fc1"].values
    assert np.isnan(relative[:2]).all()
    assert relative[2:].tolist() == [[3.0, 1.5], [4.0, 2.0]]
    assert by_name[RELATIVE]["embedding.word_embeddings"].values.tolist() == [0.25] * 4
    assert np.isnan(by_name["gradient"]["embedding.word_embeddings"].values).all()
    assert by_name["gain"]["mlp.linear_fc1.layer_norm"].dying == {1: 40}
    assert not by_name["weight"]["mlp.linear_fc1"].dying


@pytest.mark.parametrize("depths", [[0], [1], [0, 2, 60]])
def test_a_picture_at_any_depth(tmp_path: Path, depths: list[int]) -> None:
    png = layers_figure(load_layers(write(tmp_path, depths)), "a run")
    assert png[:8] == b"\x89PNG\r\n\x1a\n" and len(png) > 10_000


def test_the_tool_writes_beside_the_run_and_says_what_it_lacks(tmp_path: Path) -> None:
    def tool(directory: Path) -> tuple[int, str, str]:
        command = [sys.executable, str(TOOL), str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    assert tool(write(tmp_path, [1])) == (0, f"{tmp_path / 'layers.png'}\n", "")
    assert (tmp_path / "layers.png").stat().st_size > 10_000
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    code, output, errors = tool(tmp_path)
    assert (code, output) == (2, "") and errors == (
        f"error: {tmp_path / 'metrics.jsonl'} has no rows of layers; train with "
        "train.layers_interval above 0\n"
    )


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing is not a directory"):
        load_layers(tmp_path / "nothing")
