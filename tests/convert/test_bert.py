"""Every verb of the converter on a BERT, whose shape is not said by the sizes of a GPT alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transformers

from megatron_grow.checkpoint.open import open_reader
from megatron_grow.convert.synthetic import SyntheticReader, write
from tests.checkpoint.huggingface import models
from tests.convert.toy import GPT, command

BERT = replace(GPT, architecture="bert")
OPTIONS: dict[str, dict[str, Any]] = {
    "bert": {},
    "megatron-bert": {"norm_position": "pre"},
    "roberta": {"sentence_head": "none", "first_position": 2, "token_types": 1},
}


@pytest.mark.parametrize("family", OPTIONS)
def test_every_format_holds_it(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = replace(BERT, options=OPTIONS[family])
    run = write(tmp_path / "run", SyntheticReader(model, optimizer=None))
    assert command("export-hf", run, tmp_path / "hf") == 0
    assert json.loads((tmp_path / "hf/config.json").read_text())["model_type"] == family
    assert command("import-hf", tmp_path / "hf", tmp_path / "again") == 0
    tensor_parallel = ("--tensor-model-parallel-size", 2)
    legacy = tmp_path / "legacy"
    assert command("reshard", run, legacy, "--format", "torch", *tensor_parallel) == 0
    for other in (tmp_path / "hf", tmp_path / "again", legacy):
        assert command("verify", run, other, "--weights-only") == 0
        assert "the same weights" in capsys.readouterr().out
    options = open_reader(legacy).record.model_config.options
    assert options == open_reader(run).record.model_config.options
    # `transformers` and the engine agree on what was written.
    assert command("verify", run, tmp_path / "hf", "--weights-only", "--forward") == 0
    assert "the same function" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("norms", "kind"),
    [
        ("pre", transformers.MegatronBertForPreTraining),
        ("post", transformers.BertForPreTraining),
    ],
)
def test_growing_on_the_way(
    norms: str, kind: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice the feed-forward units, and layers that add nothing."""
    model = replace(BERT, options={"norm_position": norms}, layernorm_epsilon=1e-12)
    run = write(tmp_path / "run", SyntheticReader(model, optimizer=None))
    grown = {"model": {"num_layers": 6, "ffn_hidden_size": 64}}
    grown["grow"] = {"depth": "copying_zero", "ffn": "fpi"}
    (tmp_path / "grow.yaml").write_text(json.dumps(grown))
    to_hf = ("--format", "huggingface")
    assert command("grow", "--grow", tmp_path / "grow.yaml", run, tmp_path / "large", *to_hf) == 0
    told = capsys.readouterr().out
    family = kind.config_class.model_type
    assert f"can be exported to Hugging Face as {family}" in told
    assert command("export-hf", run, tmp_path / "small") == 0
    small, large = (kind.from_pretrained(tmp_path / name) for name in ("small", "large"))
    assert large.config.num_hidden_layers == 6 and large.config.intermediate_size == 64
    for before, after in zip(*map(outputs, (small, large)), strict=True):
        assert (after - before).abs().max() < 1e-5 * before.abs().max()


def outputs(model: Any) -> list[Any]:
    return models.outputs(model.eval(), length=GPT.max_position_embeddings)
