"""The command with an optimizer by import path and with multipliers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.command import launch, losses, rows

LION = ["--optimizer.optimizer", "extend.lion:Lion", "--optimizer.options", "{beta2: 0.95}"]
HALF = ["--optimizer.multipliers", "[{tensors: 'decoder.layers.mlp.*', lr: 0.5}]"]
AUTO = ["--checkpoint.load", "auto"]


def test_a_run_grows_stops_and_goes_on(workplace: Path) -> None:
    """From DP2, where Lion's state is sharded, into TP2; a changed multiplier is told."""
    assert launch(workplace, "lion", *LION, *HALF)[0] == 0
    assert launch(workplace, "halted", *LION, *HALF, stop_at=13)[0] == 75
    code, output, errors = launch(workplace, "halted", *LION, *HALF, *AUTO)
    assert code == 0 and "changed since" not in output, errors
    assert losses(workplace, "halted") == losses(workplace, "lion")
    code, output, errors = launch(workplace, "halted", *LION, *AUTO)  # it is finished, and says so
    assert code == 0, errors
    assert "optimizer.multipliers [{'tensors': 'decoder.layers.mlp.*', 'lr': 0.5}] -> []" in output


def test_half_the_rate_of_all_tensors_is_half_the_rate(workplace: Path) -> None:
    """The row of metrics tells the optimizer's own."""
    half = ["--optimizer.multipliers", "[{tensors: '*', lr: 0.5}]"]
    assert launch(workplace, "halved", *half, "--train.train_iters", "14")[0] == 0
    slow = ["--optimizer.lr", "1.5e-3"]
    assert launch(workplace, "slow", *slow, "--train.train_iters", "14")[0] == 0
    assert losses(workplace, "halved") == losses(workplace, "slow")
    rates = [max(row.get("lr", 0.0) for row in rows(workplace, run)) for run in ("halved", "slow")]
    assert rates == [3e-3, 1.5e-3]


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("optimizer", "adan", "optimizer.optimizer='adan' is not an optimizer; "),
        (
            "multipliers",
            "[{tensors: mlp, lr: 2}]",
            "optimizer.multipliers[0].tensors=mlp is no role",
        ),
    ],
)
def test_a_mistake_is_told_before_the_run(
    workplace: Path, option: str, value: str, said: str
) -> None:
    code, _, errors = launch(workplace, "mistaken", f"--optimizer.{option}", value)
    assert code == 2 and said in errors and errors.count("\n") == 1
    assert not (workplace / "mistaken").exists()
