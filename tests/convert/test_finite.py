"""A checkpoint of a run that diverged is not converted: the tensor is named, nothing is written."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_grow.checkpoint.open import open_reader
from megatron_grow.convert.synthetic import SyntheticReader, write
from megatron_grow.growth.at_load import load
from megatron_grow.growth.plan import resharding
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.boxes import full, shape_of
from megatron_grow.state.piece import Piece
from tests.convert.toy import GPT, LLAMA, command

BAD = "decoder.layers.mlp.linear_fc1.weight"


class Faulty(SyntheticReader):
    """Has one value of another kind."""

    kind, value = "main_param", math.nan

    def read(self, key: str, kind: str, box: tuple) -> torch.Tensor:
        values = super().read(key, kind, box)
        if key == BAD and kind == self.kind:
            values[(2,) + (1,) * (values.ndim - 1)] = self.value
        return values


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("verb", ["grow", "reshard", "export-hf"])
def test_a_diverged_checkpoint_is_refused(
    verb: str, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty = Faulty(LLAMA)
    faulty.value = value
    source, target = write(tmp_path / "a", faulty), tmp_path / "b"
    (tmp_path / "grow.yaml").write_text("model: {num_layers: 6}\ngrow: {depth: copying_stack}")
    more = ("--grow", tmp_path / "grow.yaml") if verb == "grow" else ()
    assert command(verb, source, target, *more) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{BAD} is not finite" in said
    assert not target.exists()


def test_so_is_one_whose_moments_diverged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty = Faulty(GPT)
    faulty.kind = "exp_avg_sq"
    source = write(tmp_path / "a", faulty)
    assert command("inspect", source, "--check") == 0
    said = capsys.readouterr().out
    assert said.count("is not finite") == 1
    assert f"note: optimizer.state.exp_avg_sq.{BAD} is not finite" in said
    assert command("reshard", source, tmp_path / "b") == 2
    assert f"exp_avg_sq of {BAD} is not finite" in capsys.readouterr().err
    assert command("reshard", source, tmp_path / "b", "--weights-only") == 0


def test_a_diverged_model_is_not_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    assert command("export-hf", write(tmp_path / "a", SyntheticReader(LLAMA)), model) == 0
    assert command("import-hf", model, tmp_path / "good") == 0
    (file,) = model.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = math.inf
    save_file(tensors, file)
    (model / "manifest.json").unlink()
    capsys.readouterr()
    assert command("import-hf", model, tmp_path / "b") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{BAD} is not finite" in said
    assert not (tmp_path / "b").exists()


def test_a_value_that_the_target_cannot_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faulty = Faulty(LLAMA)
    faulty.value = 1e5  # fp16 ends at 65,504
    source = write(tmp_path / "a", faulty)
    options = ("--precision", "fp16", "--allow-rounding")
    assert command("export-hf", source, tmp_path / "b", *options) == 2
    said = capsys.readouterr().err
    assert BAD in said and "float16 cannot hold" in said and "bf16" in said
    assert not (tmp_path / "b").exists()
    faulty.value = 3.4e38  # that of bf16 after the next would be infinite
    source = write(tmp_path / "c", faulty)
    options = ("--precision", "bf16", "--allow-rounding")
    assert command("export-hf", source, tmp_path / "b", *options) == 2
    assert "bfloat16 cannot hold; use --precision fp32" in capsys.readouterr().err


def test_a_run_does_not_begin_with_it(tmp_path: Path) -> None:
    source = open_reader(write(tmp_path / "a", Faulty(GPT)))
    boxes = {key: full(tensor.shape) for key, tensor in source.tensors.items()}
    target = [
        Piece(key, "main_param", box, torch.empty(shape_of(box)), True)
        for key, box in boxes.items()
    ]
    with pytest.raises(UserError, match=f"{BAD} is not finite"):
        load(resharding(GPT), source, target)
