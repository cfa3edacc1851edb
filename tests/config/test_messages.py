"""What a run file that cannot be is answered with: the field, its value, what would do."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_grow.config.run import parse_run
from megatron_grow.config.stages import StageSection
from megatron_grow.inputs.errors import UserError

STAGE_FIELDS = (
    "known are grow, lr, lr_multiplier, methods, model, parallel, release, rewarmup_iters, "
    "train, until"
)
REFUSED = {
    "stages: [{untl: 3}]": f"stages[0].untl is not a field; {STAGE_FIELDS}",
    "stages: [3]": f"stages[0]=3 must be fields and their values; {STAGE_FIELDS}",
    "stages: [{}, {until: x}]": "stages[1].until=x must be one of int, float, dict, null",
    "stages: [{grow: random}]": "stages[0].grow='random' must be fields and their values; known",
    "stages: [{grow: {dept: random}}]": "stages[0].grow.dept is not a field; known are depth, ",
    "stages: [{grow: {optimizer_state: keep}}]": "stages[0].grow.optimizer_state=keep must be one "
    "of 'carry', 'carry_old', 'reset', null",
    "stages: [{model: 3}]": "stages[0].model=3 must be dict",
    "stages: {until: 3}": "stages={'until': 3} must be list",
    "model: {num_layers: a}": "model.num_layers=a must be int",
    "model: {num_layer: 3}": "model.num_layer is not a field; did you mean num_layers?",
    "train: {precision: fp17}": "train.precision=fp17 must be one of 'fp32', 'bf16'",
    "modl: {num_layers: 3}": "modl is not a section; did you mean model?",
    "model: 3": "model=3 must be fields and their values",
    "model: {num_layers: 3, num_layers: 4}": "run.yaml, line 1, column 24: the key 'num_layers' "
    "stands twice",
    "model:\n\tnum_layers: 3": "run.yaml is not YAML, line 2, column 1: found character",
    "stages: [{until: 1, until: 2}, {}]": "line 1, column 21: the key 'until' stands twice",
    "": "run.yaml must hold sections: run, model",
    'run: {name: "a\\0b"}': "run.name=a\\x00b must be a text without NUL characters",
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


OPTIONS = {
    ("--optimizer.l", "3"): "--optimizer.l is not an option; did you mean --optimizer.lr or",
    ("--train.train_itters=5",): "--train.train_itters is not an option; did you mean "
    "--train.train_iters",
    ("--stages", '[{"until": 1, "until": 2}]'): "--stages, line 1, column 15: the key 'until'",
    ("--config", "/"): "--config / cannot be read: Is a directory",
    ("--config", "/nowhere.yaml"): "--config /nowhere.yaml is not there",
}


@pytest.mark.parametrize("argv", OPTIONS)
def test_options_are_not_abbreviated_and_errors_name_what_is_near(argv: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        parse_run(list(argv))
    assert OPTIONS[argv] in str(caught.value)


def test_a_message_is_one_line_that_prints() -> None:
    """Whatever a value holds: a terminal shows it, and its colours stay."""
    message = str(UserError("run.name=a\nb\x1b[31m\u2028c\ud800 " + 5000 * "x" + " end"))
    assert message.startswith("run.name=a b\\x1b[31m c\\ud800 xxx")
    assert message.endswith("xxx end")
    assert message.isprintable() and len(message) < 2100


def test_a_stage_may_say_nothing(tmp_path: Path) -> None:
    """It is the target, as are stages whose fields are all null or absent."""
    assert parse("stages: [{}]", tmp_path) == [StageSection()]
    assert parse("stages: [{until: null, grow: null}]", tmp_path) == [StageSection()]
    assert parse("{model: {num_layers: 3}, stages: null}", tmp_path) == []
