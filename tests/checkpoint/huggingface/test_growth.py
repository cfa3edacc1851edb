"""Imported, grown, exported: what ``transformers`` computes stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_grow.checkpoint.huggingface.reader import HuggingFaceReader
from megatron_grow.convert.growths import grow
from tests.checkpoint.huggingface import models
from tests.checkpoint.huggingface.convert import export

WIDER = {"hidden_size": 64, "num_attention_heads": 8, "ffn_hidden_size": 256}
GROWTHS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "tied": (WIDER, {"recipe": "hypercloning"}),
    "untied, noisy": (
        {**WIDER, "share_embeddings_and_output_weights": False},
        {
            "width": {"operator": "hypercloning", "snr_db": 10},
            "heads": {"operator": "lemon", "split": "random"},
            "ffn": {"operator": "hypercloning", "snr_db": 20},
        },
    ),
}


@pytest.mark.parametrize("name", GROWTHS)
def test_a_grown_gpt2_can_be_exported(name: str, tmp_path: Path) -> None:
    """The import names as many key/value groups as heads; they grow with the heads."""
    model = models.build("gpt2")
    path = models.save(model, tmp_path / "small")
    shape, operators = GROWTHS[name]
    file = tmp_path / "grow.yaml"
    file.write_text(json.dumps({"model": shape, "grow": operators}))
    told: list[str] = []
    source = HuggingFaceReader(path)
    assert source.record.model_config.num_query_groups == 4
    grown = grow(source, file, 1, told.append)
    assert "keeps the function" in told[0] and "exported to Hugging Face as gpt2" in told[0]
    export(grown, tmp_path / "large")
    large = models.load(tmp_path / "large")
    assert large.config.n_head == 8 and large.config.n_embd == 64
    logits = models.logits(model)
    assert (models.logits(large) - logits).abs().max() < 1e-5 * logits.abs().max()


def test_grouped_queries_are_told_of_before(tmp_path: Path) -> None:
    path = models.save(models.build("gpt2"), tmp_path / "small")
    file, told = tmp_path / "grow.yaml", list[str]()
    shape = {"num_attention_heads": 8, "num_query_groups": 4}
    file.write_text(json.dumps({"model": shape, "grow": {"heads": "fpi"}}))
    grow(HuggingFaceReader(path), file, 1, told.append)
    assert "multi-head attention becomes grouped: 2 query heads share" in told[0]
    assert (
        "cannot be exported to Hugging Face as gpt2 any more: model.num_query_groups=4" in told[0]
    )
