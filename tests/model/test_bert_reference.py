"""The page of plain PyTorch that is a BERT's truth elsewhere, against Hugging Face's models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from tests.growth.algebra import GPT2, TEXT, weights_of
from tests.model import bert_reference
from tests.model.reference import Weights

HEADS = {
    "cls.predictions.transform.dense.": "lm_head.dense.",
    "cls.predictions.transform.LayerNorm.": "lm_head.layer_norm.",
    "bert.pooler.dense.": "pooler.dense.",
    "cls.seq_relationship.": "binary_head.",
}
NORMS = {
    "post": {
        "bert.embeddings.LayerNorm.": "embedding.embedding_dropout.0.",
        "attention.output.LayerNorm.": "self_attn_bda.norm.",
        "output.LayerNorm.": "mlp_bda.norm.",
    },
    "pre": {
        "bert.encoder.ln.": "encoder.final_layernorm.",
        "attention.ln.": "self_attention.linear_qkv.layer_norm_",
        "ln.": "mlp.linear_fc1.layer_norm_",
    },
}
DENSE = {
    "attention.output.dense.": "self_attention.linear_proj.",
    "intermediate.dense.": "mlp.linear_fc1.",
    "output.dense.": "mlp.linear_fc2.",
}
KINDS = {
    "post": (transformers.BertConfig, transformers.BertForPreTraining),
    "pre": (transformers.MegatronBertConfig, transformers.MegatronBertForPreTraining),
}


def as_hugging_face(weights: Weights, position: str, layers: int, heads: int) -> Weights:
    """The same under Hugging Face's names; queries, keys and values of all heads apart."""
    named = {
        f"bert.embeddings.{ours.replace('tokentype', 'token_type')}": weights[f"embedding.{ours}"]
        for ours in (
            "word_embeddings.weight",
            "position_embeddings.weight",
            "tokentype_embeddings.weight",
        )
    }
    named["cls.predictions.bias"] = weights["output_layer.bias"]
    for end in ("weight", "bias"):
        for theirs, ours in (HEADS | NORMS[position]).items():
            if ours + end in weights:
                named[theirs + end] = weights[ours + end]
        for layer in range(layers):
            here = f"bert.encoder.layer.{layer}."
            for theirs, ours in (DENSE | NORMS[position]).items():
                if (key := f"encoder.layers.{ours}{end}") in weights:
                    named[here + theirs + end] = weights[key][layer]
            fused = weights[f"encoder.layers.self_attention.linear_qkv.{end}"][layer]
            parts = fused.unflatten(0, (heads, 3, -1)).unbind(1)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                named[f"{here}attention.self.{name}.{end}"] = part.flatten(0, 1)
    return named


@pytest.mark.parametrize("position", KINDS)
def test_both_logits_are_those_of_hugging_face(position: str) -> None:
    model = replace(GPT2, hidden_size=16, architecture="bert", options={"norm_position": position})
    config, kind = KINDS[position]
    truth = kind(
        config(
            vocab_size=model.vocabulary,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=12,
            max_position_embeddings=8,
            layer_norm_eps=model.layernorm_epsilon,
        )
    ).double()
    truth.eval()
    weights = weights_of(model)
    found = truth.load_state_dict(as_hugging_face(weights, position, 2, 4), strict=False)
    assert not found.unexpected_keys
    assert all("decoder" in key or "position_ids" in key for key in found.missing_keys)
    with torch.no_grad():
        said = truth(TEXT.tokens, ~TEXT.padding, TEXT.types)
    ours = bert_reference.logits(model, weights, TEXT)
    assert ours.sentence is not None
    assert (ours.tokens - said.prediction_logits).abs().max() < 1e-12
    assert (ours.sentence - said.seq_relationship_logits).abs().max() < 1e-12
