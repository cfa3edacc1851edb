"""Rules on histories whose slopes and losses are known in closed form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_grow.config.run import RunConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.rules.base import Observation
from megatron_grow.rules.table import RULES

RUN = RunConfig()
GIVEN = {"run": RUN, "stage": RUN.resolve(1)[0]}
"""What every rule knows of its run."""


def history(losses: list[float], flops: list[int] | None = None) -> list[Observation]:
    """Observations of every tenth step."""
    flops = flops or [10**6 * (i + 1) for i in range(len(losses))]
    return [
        Observation(10 * (i + 1), 80 * (i + 1), cost, loss)
        for i, (loss, cost) in enumerate(zip(losses, flops, strict=True))
    ]


def power_law(exponent: float, count: int = 8) -> list[Observation]:
    """Losses that fall as compute to the power of ``exponent``."""
    flops = [3 * 10**9 * (i + 2) ** 2 for i in range(count)]
    return history([40.0 * cost**exponent for cost in flops], flops)


def ends(spec: dict[str, Any] | str, seen: list[Observation]) -> str | None:
    return RULES.make(spec, "until", **GIVEN).ends(seen)


def test_loss_below_looks_at_the_last_loss() -> None:
    spec = {"rule": "loss_below", "loss": 2.5}
    assert ends(spec, history([2.4, 2.6])) is None
    assert ends(spec, history([2.5])) is None
    assert ends(spec, history([3.0, 2.4375])) == "loss 2.4375 is below 2.5"


@pytest.mark.parametrize("exponent", [-0.3, -0.076, -0.06])
def test_a_power_law_that_is_steep_enough_goes_on(exponent: float) -> None:
    assert ends("loss_slope", power_law(exponent)) is None


@pytest.mark.parametrize("exponent", [-0.05, -0.001, 0.0, 0.2])
def test_one_that_is_flat_or_rises_ends(exponent: float) -> None:
    said = ends("loss_slope", power_law(exponent))
    assert said is not None
    assert float(said.split()[1]) == pytest.approx(exponent, abs=1e-6)


def test_the_threshold_is_an_option() -> None:
    law = power_law(-0.05)
    assert ends({"rule": "loss_slope", "slope": -0.0475}, law) is None
    assert ends({"rule": "loss_slope", "slope": -0.052}, law) is not None


def test_the_line_goes_through_the_last_observations_alone() -> None:
    """Compute doubles each time: the loss halves (slope -1) until it stands still (slope 0)."""
    doubling = [2**i for i in range(8)]
    seen = history([8.0, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0], doubling)
    spec = {"rule": "loss_slope", "slope": -0.05, "window": 3}
    decided = [ends(spec, seen[:count]) for count in range(1, 9)]
    assert decided[:5] == [None] * 5
    assert decided[5] == "slope 0 of log loss over log compute is above -0.05"
    # Least squares over (2, 1, 0, 0) in base 2 at 1, 2, 3, 4: -3.5 / 5.
    four = {"rule": "loss_slope", "slope": -0.71, "window": 4}
    assert ends(four, seen[1:5]) == "slope -0.7 of log loss over log compute is above -0.71"
    assert ends({**four, "slope": -0.69}, seen[1:5]) is None


def test_fewer_observations_than_the_window_decide_nothing() -> None:
    assert ends("loss_slope", power_law(0.0, count=4)) is None
    assert ends("loss_slope", power_law(0.0, count=5)) is not None


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("loss", "stages[0].until='loss' is not a rule; known are calibrated, g_stack, "),
        ({"rule": "loss_below"}, "stages[0].until"),
        ({"rule": "loss_below", "loss": 0}, "stages[0].until.loss=0"),
        ({"rule": "loss_below", "los": 2.0}, "stages[0].until.los is not an option of loss_below"),
        ({"rule": "loss_slope", "slope": 0.05}, "stages[0].until.slope=0.05 must be less than 0"),
        ({"rule": "loss_slope", "window": 1}, "stages[0].until.window=1 must be at least 2"),
        ({"rule": "los_slope"}, "stages[0].until.rule='los_slope' is not a rule; known are "),
        ({"loss": 2.0}, "stages[0].until.rule=None is not a rule; known are calibrated, "),
        ({"rule": "math:sqrt"}, "stages[0].until.rule=math:sqrt is not a rule: a subclass of"),
        (
            {"rule": "nowhere:Rule"},
            "stages[0].until.rule=nowhere:Rule cannot be imported: No module named ",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(spec: Any, said: str) -> None:
    with pytest.raises(UserError) as error:
        RULES.make(spec, "stages[0].until", **GIVEN)
    assert str(error.value).startswith(said)


def test_a_module_that_does_not_import_is_told_whatever_is_wrong_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "no_python.py").write_text("def ends(:\n")
    (tmp_path / "no_table.py").write_text("TABLE = {}\nTABLE['slope']\n")
    for name, said in (("no_python", "SyntaxError: "), ("no_table", "KeyError: 'slope'")):
        with pytest.raises(UserError) as error:
            RULES.make({"rule": f"{name}:Rule"}, "until", **GIVEN)
        assert str(error.value).startswith(f"until.rule={name}:Rule cannot be imported: {said}")


def test_a_rule_by_import_path() -> None:
    """That of examples/extend."""
    spec = {"rule": "extend.plateau:Plateau", "patience": 2}
    losses = [3.0, 2.5, 2.6, 2.4, 2.4, 2.45]
    decided = [ends(spec, history(losses[:count])) for count in range(1, 7)]
    assert decided == [None] * 5 + ["no loss below 2.4000 since step 40"]
    with pytest.raises(UserError, match=r"^until\.patience=0 must be at least 1$"):
        ends({**spec, "patience": 0}, history(losses))
