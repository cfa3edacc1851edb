"""What a run file that cannot be is answered with: the field, its value, what would do."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_grow.config.errors import UserError
from megatron_grow.config.run import parse_run
from megatron_grow.config.stages import StageSection

STAGE_FIELDS = "known are grow, lr_multiplier, model, parallel, rewarmup_iters, train, until"
REFUSED = {
    "stages: [{untl: 3}]": f"stages[0].untl is not a field; {STAGE_FIELDS}",
    "stages: [3]": f"stages[0]=3 must be fields and their values; {STAGE_FIELDS}",
    "stages: [{}, {until: x}]": "stages[1].until=x must be one of int, float, null",
    "stages: [{grow: random}]": "stages[0].grow='random' must be fields and their values; known",
    "stages: [{grow: {dept: random}}]": "stages[0].grow.dept is not a field; known are depth, ",
    "stages: [{grow: {optimizer_state: keep}}]": "stages[0].grow.optimizer_state=keep must be one "
    "of 'carry', 'carry_old', 'reset', null",
    "stages: [{model: 3}]": "stages[0].model=3 must be dict",
    "stages: {until: 3}": "stages={'until': 3} must be list",
    "model: {num_layers: a}": "model.num_layers=a must be int",
    "model: {num_layer: 3}": "'model' does not accept option 'num_layer'",
    "train: {precision: fp17}": "train.precision=fp17 must be one of 'fp32', 'bf16'",
    "modl: {num_layers: 3}": "'modl.num_layers' is not accepted",
}


def parse(text: str, directory: Path) -> list[StageSection]:
    (directory / "run.yaml").write_text(text)
    return parse_run(["--config", str(directory / "run.yaml")]).stages


@pytest.mark.parametrize("text", REFUSED)
def test_one_line_names_the_field(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        parse(text, tmp_path)
    assert REFUSED[text] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stage_may_say_nothing(tmp_path: Path) -> None:
    """It is the target, as are stages whose fields are all null or absent."""
    assert parse("stages: [{}]", tmp_path) == [StageSection()]
    assert parse("stages: [{until: null, grow: null}]", tmp_path) == [StageSection()]
    assert parse("{model: {num_layers: 3}, stages: null}", tmp_path) == []
