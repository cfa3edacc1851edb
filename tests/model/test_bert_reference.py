"""The page of plain PyTorch that is a BERT's truth elsewhere, against Hugging Face's models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megatron_grow.config.model import ModelConfig
from megatron_grow.model.architectures import logical_tensors
from tests.growth.algebra import POST_NORM, PRE_NORM, TEXT, weights_of
from tests.model import bert_reference, transformers_bert

ROBERTA = {"sentence_head": "none", "token_types": 0, "first_position": 2}
MODELS = {
    "bert": POST_NORM,
    "megatron-bert": PRE_NORM,
    "roberta": replace(POST_NORM, max_position_embeddings=10, options=ROBERTA),
}


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_both_logits_are_those_of_hugging_face(kind: str) -> None:
    model: ModelConfig = replace(MODELS[kind], hidden_size=16)
    tensors, weights = logical_tensors(model), weights_of(model)
    fine = {key: values.view(tensors[key].shape) for key, values in weights.items()}
    names = ("tokens", "token_types", "padding_mask")
    batch = dict(zip(names, TEXT, strict=True))
    tokens, sentence = transformers_bert.outputs(model, kind, fine, batch)
    first = model.options.get("first_position", 0)
    ours = bert_reference.logits(model, weights, TEXT, first_position=first)
    assert (ours.tokens - tokens).abs().max() < 1e-12
    if sentence is None:
        assert ours.sentence is None
    else:
        assert ours.sentence is not None
        assert (ours.sentence - sentence).abs().max() < 1e-12
