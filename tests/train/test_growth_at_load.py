"""Runs that grow out of another run's checkpoint, and runs whose new units fade in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_grow.checkpoint.record import read_record
from megatron_grow.convert.command import main as convert
from tests.train.command import launch, losses, rows

WIDER: dict[str, Any] = {"hidden_size": 64, "kv_channels": 8, "num_attention_heads": 8}
SMALL = ["--model.kv_channels", "8", "--stages", "[]", "--model.num_layers", "1"]


def wider(grow: dict[str, Any], train_iters: int = 20, **first: Any) -> list[str]:
    """A run whose first stage is twice as wide as what it loads, and that then gets deeper."""
    stages = [
        {"until": 15, "model": {"num_layers": 1}, "grow": grow, **first},
        {"grow": {"depth": "copying_stack"}},
    ]
    fields = [part for name, value in WIDER.items() for part in (f"--model.{name}", str(value))]
    return [*fields, "--stages", json.dumps(stages), "--train.train_iters", str(train_iters)]


@pytest.fixture(scope="module")
def small(workplace: Path) -> Path:
    """A finished run of one narrow layer, on two tensor-parallel ranks."""
    tp2 = ["--parallel.tensor_model_parallel_size", "2", "--train.train_iters", "10"]
    code, _, errors = launch(workplace, "small", *SMALL, *tp2)
    assert code == 0, errors
    return workplace / "small" / "checkpoints"


HYPERCLONING = {"recipe": "hypercloning"}


def test_begins_afresh_with_the_function_that_was_loaded(workplace: Path, small: Path) -> None:
    load = ["--checkpoint.load", str(small), "--train.eval_interval", "1"]
    code, output, errors = launch(
        workplace, "afresh", *wider({**HYPERCLONING, "optimizer_state": "reset"}), *load
    )
    assert code == 0, errors
    assert "stages[0], while loading: 32 -> 64 hidden_size by hypercloning" in output
    assert "keeps the function" in output and "changes the function" in output
    assert "exported to Hugging Face" in output
    loaded, _ = read_record(workplace / "afresh" / "checkpoints" / "iter_0000020").growths
    assert (loaded.source_layout, loaded.target_layout) == ("on disk", "TP1 PP1 DP2")
    steps = losses(workplace, "afresh")
    assert sorted(steps) == list(range(1, 21))
    # The first batch is the first batch of the small run, as a model that has finished sees it.
    assert steps[1] < losses(workplace, "small")[1] - 0.1


def test_any_format_is_grown_from(workplace: Path, small: Path) -> None:
    """Megatron's legacy files lead to the losses of the checkpoint that they were made from."""
    legacy = workplace / "legacy"
    options = ["--format", "torch", "--weights-only", "--tensor-model-parallel-size", "2"]
    assert convert(["reshard", str(small), str(legacy), *options]) == 0
    grow = wider({**HYPERCLONING, "optimizer_state": "reset"})
    for name, load in (("from-legacy", legacy), ("from-torch-dist", small)):
        code, _, errors = launch(workplace, name, *grow, "--checkpoint.load", str(load))
        assert code == 0, errors
    assert losses(workplace, "from-legacy") == losses(workplace, "from-torch-dist")


def test_continues_where_the_small_run_stood(workplace: Path, small: Path) -> None:
    """The next step sees the loss of the small run's own next step."""
    load = ["--checkpoint.load", str(small), "--checkpoint.start", "continue"]
    schedule = ["--schedule.lr_decay_style", "constant"]
    grown = launch(workplace, "continued", *wider(HYPERCLONING), *load, *schedule)
    assert grown[0] == 0, grown[2]
    shutil.copytree(workplace / "small", workplace / "longer")
    longer = launch(
        workplace, "longer", *SMALL, "--train.train_iters", "20", "--checkpoint.load", "auto"
    )
    assert longer[0] == 0, longer[2]
    found, truth = losses(workplace, "continued"), losses(workplace, "longer")
    assert sorted(found) == list(range(11, 21))
    assert found[11] == pytest.approx(truth[11], rel=1e-5)


@pytest.mark.parametrize("how", ["load", "initial"])
def test_a_restart_goes_on_with_its_own_checkpoints(workplace: Path, small: Path, how: str) -> None:
    load = [f"--checkpoint.{how}", str(small)]
    load += ["--checkpoint.load", "auto"] if how == "initial" else []
    whole = launch(workplace, f"whole-{how}", *wider(HYPERCLONING), *load)
    cut = launch(workplace, f"own-{how}", *wider(HYPERCLONING), *load, stop_at=8)
    assert (whole[0], cut[0]) == (0, 75) and "stopped as asked" in cut[1]
    again = launch(workplace, f"own-{how}", *wider(HYPERCLONING), *load)
    assert again[0] == 0 and "resumed from" in again[1], again
    assert losses(workplace, f"own-{how}") == losses(workplace, f"whole-{how}")


MISTAKES = {
    "nothing to load": (wider(HYPERCLONING), ["stages[0].grow", "checkpoint.load"]),
    "no such place": (
        [*wider(HYPERCLONING), "--checkpoint.load", "/nowhere"],
        ["/nowhere", "not a directory"],
    ),
    "another family": (
        [*wider(HYPERCLONING), "--checkpoint.load", "SMALL", "--model.normalization", "RMSNorm"],
        ["stages[0].model.normalization", "RMSNorm", "LayerNorm"],
    ),
    "a missing key": (
        [*wider({"heads": "fpi"}), "--checkpoint.load", "SMALL"],
        ["stages[0].grow.width is missing", "32 to 64"],
    ),
    "other moments": (
        [*wider(HYPERCLONING), "--checkpoint.load", "SMALL", "--optimizer.optimizer", "sgd"],
        ["momentum_buffer", "optimizer_state: reset"],
    ),
    "a step that the stage does not cover": (
        [
            *wider(HYPERCLONING, train_iters=18),
            *("--checkpoint.load", "SMALL", "--checkpoint.start", "continue"),
            *("--train.seq_length", "16"),
        ],
        ["seq_length=32", "16"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(workplace: Path, small: Path, name: str) -> None:
    options, parts = MISTAKES[name]
    options = [str(small) if option == "SMALL" else option for option in options]
    code, _, errors = launch(workplace, "mistaken", *options)
    assert code == 2
    assert errors.count("\n") == 1 and all(part in errors for part in parts), errors
    assert not (workplace / "mistaken" / "checkpoints").exists()


MASKED = [
    {"until": 10, "model": {"num_layers": 1, "ffn_hidden_size": 64}},
    {"grow": {"depth": "random", "ffn": "random", "mask_iters": 6}},
]


def test_masks_survive_a_resume_in_mid_ramp(workplace: Path) -> None:
    """Bit for bit; validation loss does not move at the growth, and no mask is in the result."""
    stages = ["--stages", json.dumps(MASKED)]
    code, output, errors = launch(workplace, "masked", *stages)
    assert code == 0, errors
    assert "keeps the function" in output
    (growth,) = [row for row in rows(workplace, "masked") if row.get("event") == "growth"]
    assert growth["val_loss_after"] == pytest.approx(growth["val_loss_before"], rel=1e-6)
    cut = launch(workplace, "masked-cut", *stages, stop_at=13)
    assert cut[0] == 75, cut[2]
    again = launch(workplace, "masked-cut", *stages, "--checkpoint.load", "auto")
    assert again[0] == 0, again[2]
    whole = losses(workplace, "masked")
    assert losses(workplace, "masked-cut") == whole
    unmasked = [MASKED[0], {"grow": {"depth": "random", "ffn": "random"}}]
    assert launch(workplace, "unmasked", "--stages", json.dumps(unmasked))[0] == 0
    others = losses(workplace, "unmasked")
    assert all(others[step] == whole[step] for step in range(1, 11))
    assert all(others[step] != whole[step] for step in range(11, 21))


def test_print_config_spells_a_recipe_out(capsys: pytest.CaptureFixture[str]) -> None:
    from megatron_grow.config.run import parse_run

    stages = [{"until": 0.5, "model": {"num_layers": 2}}, {"grow": {"recipe": "g_stack"}}]
    with pytest.raises(SystemExit):
        parse_run(["--print_config", "--stages", json.dumps(stages)])
    printed = capsys.readouterr().out
    assert "operator: copying_stack" in printed and "optimizer_state: reset" in printed
