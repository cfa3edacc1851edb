"""The command under CompleteP: a run that grows, stops and goes on, and its checkpoints."""

from __future__ import annotations

import json
from math import sqrt
from pathlib import Path

import pytest
import torch

from megatron_grow.checkpoint.record import read_record
from megatron_grow.convert.command import main as convert
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.boxes import full
from megatron_grow.state.fresh import fresh
from megatron_grow.state.tensors import Normal
from tests.convert.toy import by_torch
from tests.train.command import launch, losses

RULE = ["--parametrization.name", "completep"]
BASE = ["--parametrization.base", "{hidden_size: 16, num_layers: 1}"]
AUTO = ["--checkpoint.load", "auto"]
FC1, FC2 = (f"decoder.layers.mlp.linear_{name}.weight" for name in ("fc1", "fc2"))


@pytest.fixture(scope="module")
def whole(workplace: Path) -> Path:
    """A run from no layer to two that never stops."""
    code, _, errors = launch(workplace, "whole", *RULE, *BASE)
    assert code == 0, errors
    return workplace / "whole" / "checkpoints"


def test_a_run_grows_stops_and_goes_on(workplace: Path, whole: Path) -> None:
    """All stages have the target's factors; another base is another run."""
    assert launch(workplace, "cut", *RULE, *BASE, stop_at=13)[0] == 75
    other = ["--parametrization.base", "{hidden_size: 16, num_layers: 1, ffn_hidden_size: 32}"]
    code, _, errors = launch(workplace, "cut", *RULE, *other, *AUTO)
    assert code == 2 and "was trained with parametrization.base={'hidden_size'" in errors
    code, output, errors = launch(workplace, "cut", *RULE, *BASE, *AUTO)
    assert code == 0 and "changed since" not in output, errors
    assert losses(workplace, "cut") == losses(workplace, "whole")
    for step in (5, 20):
        model = read_record(whole / f"iter_{step:07}").model_config
        assert (model.num_layers, model.residual_multiplier, model.logits_scaling) == (
            0 if step == 5 else 2,
            0.5,
            2.0,
        )


def test_layers_that_the_converter_makes_are_those_of_the_run(whole: Path, tmp_path: Path) -> None:
    """Half as large as a base of 16 would have them in variance, not made smaller by the depth."""
    grow = tmp_path / "grow.yaml"
    grow.write_text(json.dumps({"model": {"num_layers": 2}, "grow": {"depth": "random"}}))
    source = whole / "iter_0000005"
    assert convert(["grow", str(source), str(tmp_path / "grown"), "--grow", str(grow)]) == 0
    (checkpoint,) = (tmp_path / "grown").glob("iter_*")
    found, record = by_torch(checkpoint), read_record(checkpoint)
    assert record.model_config.residual_multiplier == 0.5
    tensors = logical_tensors(record.model_config)
    for key, std in ((FC1, 0.02 / sqrt(2)), (FC2, 0.02 / sqrt(2) / sqrt(2 * 1))):
        box = full(tensors[key].shape)
        expected = fresh(tensors[key], box, Normal(std), seed=7).view(found[key].shape)
        torch.testing.assert_close(found[key], expected, rtol=1e-6, atol=0)


def test_a_mistake_is_told_before_the_run(workplace: Path) -> None:
    code, _, errors = launch(workplace, "mistaken", *RULE)
    assert code == 2 and errors.count("\n") == 1
    assert "parametrization.base names nothing in which the base model differs" in errors
    assert not (workplace / "mistaken").exists()
