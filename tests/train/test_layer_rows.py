"""Rows of layers of a run that grows from 0 to 2 layers at step 10, and what they tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.command import launch, losses, rows

SGD = ("--optimizer.optimizer", "sgd")
MEASURED = (*SGD, "--train.layers_interval", "4", "--train.dying_share", "0.99")
"""So high a share that updates which differ a little are told; under Adam they hardly do."""


@pytest.fixture(scope="module")
def output(workplace: Path) -> str:
    """Of the run without a stop."""
    code, output, errors = launch(workplace, "measured", *MEASURED)
    assert code == 0, errors
    return output


def of_layers(workplace: Path, name: str) -> list[dict]:
    return [row for row in rows(workplace, name) if "layers" in row.get("event", "")]


def test_rows_come_at_their_interval_and_where_a_stage_begins(workplace: Path, output: str) -> None:
    found = [row for row in of_layers(workplace, "measured") if row["event"] == "layers"]
    assert [row["step"] for row in found] == [1, 4, 8, 11, 12, 16, 20]
    assert [row["num_layers"] for row in found] == [0, 0, 0, 2, 2, 2, 2]
    for row in found[:-1]:  # the rate of the last step is 0
        assert len(row["activation"].get("residual_stream", [])) == row["num_layers"]
        assert row["activation"]["embedding"] > 0
        for quantity in ("weight", "update", "gradient"):
            assert row[quantity]["embedding.word_embeddings.weight"] > 0
    assert found[3]["gain"]["decoder.layers.mlp.linear_fc1.layer_norm_weight"] == pytest.approx(
        [1.0, 1.0], abs=0.01
    )


def test_layers_that_die_are_told_once(workplace: Path, output: str) -> None:
    told = [row for row in of_layers(workplace, "measured") if row["event"] == "dying_layers"]
    found = [each for row in told for each in row["found"]]
    places = [(each["key"], layer) for each in found for layer in each["layers"]]
    assert places and len(places) == len({*places}) and 16 <= told[0]["step"] <= 20
    lines = [line for line in output.splitlines() if "may be dying" in line]
    assert len(lines) == len(found)
    assert "below train.dying_share=0.99 since step 1" in lines[0] and "docs/layers.md" in lines[0]
    for each, line in zip(found, lines, strict=True):
        assert each["key"] in line and f"layers {', '.join(map(str, each['layers']))} " in line


def test_a_resumed_run_tells_the_same(workplace: Path, output: str) -> None:
    code, _, errors = launch(workplace, "stopped", *MEASURED, stop_at=15)
    assert code != 0 and of_layers(workplace, "stopped")[-1]["step"] == 12, errors
    code, _, errors = launch(workplace, "stopped", *MEASURED, "--checkpoint.load", "auto")
    assert code == 0, errors
    assert of_layers(workplace, "stopped") == of_layers(workplace, "measured")


def test_losses_are_those_of_a_run_without_rows(workplace: Path, output: str) -> None:
    assert launch(workplace, "plain", *SGD)[0] == 0
    assert of_layers(workplace, "plain") == []
    assert losses(workplace, "plain") == losses(workplace, "measured")
