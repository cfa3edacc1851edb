"""Every verb of the converter on a BERT, whose shape is not said by the sizes of a GPT alone."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from megatron.core.models.bert.bert_layer_specs import bert_layer_local_spec
from megatron.core.models.bert.bert_model import BertModel

from megatron_grow.checkpoint.open import open_reader
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.convert.forward import compare_logits
from megatron_grow.convert.synthetic import SyntheticReader, write
from megatron_grow.model.engine_config import transformer_config
from megatron_grow.parallel import process_groups
from tests.checkpoint.huggingface import models
from tests.convert.toy import GPT, command
from tests.distributed import run_ranks

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
    [apart] = run_ranks(1, _apart, run, tmp_path / "hf")
    assert apart < 1e-6


def _apart(a: Path, b: Path) -> float:
    return compare_logits(open_reader(a), open_reader(b))[0]


UNFUSED = {
    "self_attention.linear_qkv.layer_norm_": "input_layernorm.",
    "mlp.linear_fc1.layer_norm_": "pre_mlp_layernorm.",
}
"""Names of norms where Transformer Engine does not fuse them with projections."""


def takes(path: Path, model: ModelConfig) -> bool:
    """On a rank: whether megatron-core's own BERT takes all of a legacy file, and nothing else."""
    parallel = ParallelConfig()
    process_groups.set_up(parallel, seed=1)
    bert = BertModel(
        transformer_config(model, parallel, TrainSection()),
        num_tokentypes=2,
        transformer_layer_spec=bert_layer_local_spec,
        vocab_size=model.padded_vocab_size(1),
        max_sequence_length=model.max_position_embeddings,
        share_embeddings_and_output_weights=True,
    )
    with torch.serialization.safe_globals([Namespace]):
        state = torch.load(path / "mp_rank_00" / "model_optim_rng.pt", weights_only=True)
    weights = state["model"]
    for fused, apart in UNFUSED.items():
        weights = {name.replace(fused, apart): values for name, values in weights.items()}
    bert.load_state_dict(weights)
    return True


def test_legacy_files_are_those_of_megatron_core(tmp_path: Path) -> None:
    model = replace(BERT, options=OPTIONS["megatron-bert"])
    run = write(tmp_path / "run", SyntheticReader(model, optimizer=None))
    assert command("reshard", run, tmp_path / "legacy", "--format", "torch") == 0
    (path,) = (tmp_path / "legacy").glob("iter_*")
    assert run_ranks(1, takes, path, model) == [True]


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
