"""A run that shares its layers at first, stopped and resumed; and its checkpoints, converted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.convert.toy import by_torch
from tests.convert.toy import command as convert
from tests.train.command import launch, losses, rows, steps_saved

LAYERS, ENDS = 4, 10
FC1 = "decoder.layers.mlp.linear_fc1.weight"
PP2: dict[str, Any] = {"pipeline_model_parallel_size": 2}
TP2 = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
DP2 = {"overlap_grad_reduce": True, "overlap_param_gather": True}


def place(workplace: Path, name: str, *layouts: dict[str, Any]) -> Path:
    """A directory with the run file, its two stages on these layouts."""
    run = yaml.safe_load((workplace / "run.yaml").read_text())
    run["model"] |= {"num_layers": LAYERS, "activation": "gelu_tanh"}
    run["stages"] = [
        {"until": ENDS, "model": {"layer_sharing": f"1x{LAYERS}"}, "parallel": layouts[0]},
        {"grow": {"depth": "unshare"}, "parallel": layouts[1]},
    ]
    directory = workplace / name
    directory.mkdir()
    (directory / "run.yaml").write_text(yaml.safe_dump(run))
    return directory


@pytest.fixture(scope="module")
def whole(workplace: Path) -> Path:
    """Run without a break."""
    directory = place(workplace, "whole", PP2, TP2)
    code, output, errors = launch(directory, "out")
    assert code == 0, errors
    assert "4 -> 4 layers (1 -> 4 unique) by unshare" in output
    return directory


@pytest.fixture(scope="module")
def checkpoint(whole: Path) -> Path:
    """With shared layers."""
    return whole / "out/checkpoints/iter_0000005"


def test_unsharing_keeps_the_function(whole: Path) -> None:
    (growth,) = (row for row in rows(whole, "out") if row.get("event") == "growth")
    assert growth["val_loss_after"] == pytest.approx(growth["val_loss_before"], rel=1e-6)
    layer = sum(
        tensor[0].numel()
        for name, tensor in by_torch(whole / "out/checkpoints/iter_0000020").items()
        if name.startswith("decoder.layers.")
    )
    assert growth["to_parameters"] - growth["from_parameters"] == (LAYERS - 1) * layer


def test_a_run_that_was_stopped_goes_on_under_another_layout(workplace: Path, whole: Path) -> None:
    """From within the shared stage, and with the growth still to come."""
    directory = place(workplace, "stopped", PP2, TP2)
    launch(directory, "out", stop_at=7)
    assert steps_saved(directory, "out")[-1] == 7
    (directory / "run.yaml").write_text(
        (place(workplace, "later", DP2, PP2) / "run.yaml").read_text()
    )
    code, _, errors = launch(directory, "out", "--checkpoint.load", "auto")
    assert code == 0, errors
    expected, found = losses(whole, "out"), losses(directory, "out")
    assert [found[step] for step in range(1, 8)] == [expected[step] for step in range(1, 8)]
    assert found == pytest.approx(expected, rel=2e-5)
    assert max(found) == 20


def test_what_a_checkpoint_holds(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = by_torch(checkpoint)
    assert stored[FC1].shape == (1, 128, 32)
    assert stored[f"optimizer.state.exp_avg.{FC1}"].shape == (1, 128, 32)
    assert convert("inspect", checkpoint, "--check") == 0
    told = capsys.readouterr().out
    assert f"layer_sharing 1x{LAYERS}" in told
    assert f"{FC1}: 1 x 128 x 32" in told


def test_converted_it_is_the_same(checkpoint: Path, tmp_path: Path) -> None:
    layout = ["--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2]
    assert convert("reshard", checkpoint, tmp_path / "resharded", *layout) == 0
    assert convert("verify", checkpoint, tmp_path / "resharded") == 0


def test_unshared_offline_it_has_the_same_function(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "grow.yaml").write_text("model: {layer_sharing: null}\ngrow: {depth: unshare}\n")
    assert convert("grow", checkpoint, tmp_path / "grown", "--grow", tmp_path / "grow.yaml") == 0
    assert convert("verify", checkpoint, tmp_path / "grown", "--forward") == 0
    before, after = by_torch(checkpoint), by_torch(tmp_path / "grown/iter_0000005")
    parts = {"": 1, "optimizer.state.exp_avg.": LAYERS, "optimizer.state.exp_avg_sq.": LAYERS**2}
    for kind, part in parts.items():
        expected = (before[kind + FC1] / part).expand(LAYERS, -1, -1)
        assert torch.equal(after[kind + FC1], expected), kind


def test_formats_without_shared_layers_have_each_of_them(checkpoint: Path, tmp_path: Path) -> None:
    hf, legacy, back = tmp_path / "hf", tmp_path / "legacy", tmp_path / "back"
    assert convert("export-hf", checkpoint, hf) == 0
    weights = load_file(hf / "model.safetensors")
    stored = by_torch(checkpoint)[FC1][0]
    for layer in range(LAYERS):
        assert torch.equal(weights[f"transformer.h.{layer}.mlp.c_fc.weight"].T, stored)
    assert json.loads((hf / "config.json").read_text())["n_layer"] == LAYERS
    options = ["--format", "torch", "--weights-only", "--pipeline-model-parallel-size", 2]
    assert convert("reshard", checkpoint, legacy, *options) == 0
    assert convert("reshard", legacy, back) == 0
    found = by_torch(back / "iter_0000005")[FC1]
    assert torch.equal(found, stored.expand(LAYERS, -1, -1))
    assert convert("verify", hf, back, "--weights-only") == 0
    assert convert("verify", checkpoint, hf, "--forward") == 0  # by transformers
