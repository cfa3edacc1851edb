"""BERTs of transformers with the weights of logical tensors, through which gradients flow back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import transformers

from megatron_grow.config.model import ModelConfig

Weights = Mapping[str, torch.Tensor]
"""By key of the logical tensor, in its fine axes."""

KINDS = {
    "bert": transformers.BertForPreTraining,
    "megatron-bert": transformers.MegatronBertForPreTraining,
    "bert without sentences": transformers.BertForMaskedLM,
    "roberta": transformers.RobertaForMaskedLM,
}


def built(model: ModelConfig, kind: str) -> torch.nn.Module:
    """One in fp64 of that shape, in training; its weights are to be replaced."""
    config = KINDS[kind].config_class(
        vocab_size=model.vocabulary,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        intermediate_size=model.ffn_size,
        hidden_dropout_prob=model.hidden_dropout,
        attention_probs_dropout_prob=model.attention_dropout,
        max_position_embeddings=model.max_position_embeddings,
        type_vocab_size=1 if kind == "roberta" else 2,
        layer_norm_eps=model.layernorm_epsilon,
        tie_word_embeddings=model.share_embeddings_and_output_weights,
        pad_token_id=1 if kind == "roberta" else None,  # of it, no gradient of a look-up comes
    )
    return KINDS[kind](config).double()


def named(model: ModelConfig, kind: str, weights: Weights) -> dict[str, torch.Tensor]:
    """``weights`` under the names that the class has for them."""
    base = "roberta" if kind == "roberta" else "bert"
    found = {
        f"{base}.embeddings.word_embeddings.weight": weights["embedding.word_embeddings.weight"],
        f"{base}.embeddings.position_embeddings.weight": weights[
            "embedding.position_embeddings.weight"
        ],
    }
    types = weights.get("embedding.tokentype_embeddings.weight")
    if types is None:
        types = torch.zeros(1, model.hidden_size, dtype=torch.float64)
    found[f"{base}.embeddings.token_type_embeddings.weight"] = types
    pre = kind == "megatron-bert"
    renamed = {"encoder.final_layernorm": "bert.encoder.ln"} if pre else {}
    renamed |= {"embedding.embedding_dropout.0": f"{base}.embeddings.LayerNorm"} if not pre else {}
    renamed |= {"pooler.dense": "bert.pooler.dense", "binary_head": "cls.seq_relationship"}
    head = "lm_head" if kind == "roberta" else "cls.predictions.transform"
    norm = "layer_norm" if kind == "roberta" else "LayerNorm"
    renamed |= {"lm_head.dense": f"{head}.dense", "lm_head.layer_norm": f"{head}.{norm}"}
    for ours, theirs in renamed.items():
        for part in ("weight", "bias"):
            if f"{ours}.{part}" in weights:
                found[f"{theirs}.{part}"] = weights[f"{ours}.{part}"]
    head = "lm_head" if kind == "roberta" else "cls.predictions"
    tokens = weights.get("output_layer.weight", weights["embedding.word_embeddings.weight"])
    found[f"{head}.decoder.weight"] = tokens
    for name in (f"{head}.bias", f"{head}.decoder.bias"):
        found[name] = weights["output_layer.bias"]
    for layer in range(model.num_layers):
        found |= _layer(f"{base}.encoder.layer.{layer}", layer, weights, pre)
    return found


def _layer(prefix: str, layer: int, weights: Weights, pre: bool) -> dict[str, torch.Tensor]:
    found = {}
    renamed = {
        "self_attention.linear_proj.": "attention.output.dense.",
        "mlp.linear_fc1.": "intermediate.dense.",
        "mlp.linear_fc2.": "output.dense.",
    }
    renamed |= (
        {
            "self_attention.linear_qkv.layer_norm_": "attention.ln.",
            "mlp.linear_fc1.layer_norm_": "ln.",
        }
        if pre
        else {
            "self_attn_bda.norm.": "attention.output.LayerNorm.",
            "mlp_bda.norm.": "output.LayerNorm.",
        }
    )
    for ours, theirs in renamed.items():
        for part in ("weight", "bias"):
            values = weights[f"encoder.layers.{ours}{part}"][layer]
            if theirs == "attention.output.dense." and part == "weight":
                values = values.flatten(1)  # of heads, and their dimensions
            found[f"{prefix}.{theirs}{part}"] = values
    for part in ("weight", "bias"):
        fused = weights[f"encoder.layers.self_attention.linear_qkv.{part}"][layer]
        for number, name in enumerate(("query", "key", "value")):
            found[f"{prefix}.attention.self.{name}.{part}"] = fused[:, number].flatten(0, 1)
    return found


def outputs(
    model: ModelConfig,
    kind: str,
    weights: Weights,
    batch: Mapping[str, torch.Tensor],
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits of all tokens, (batch, sequence, vocabulary), and of sentences, if there are any.

    ``seed`` is that of dropout.
    """
    asked = {
        "input_ids": batch["tokens"],
        "token_type_ids": batch["token_types"],
        "attention_mask": (~batch["padding_mask"]).long(),
    }
    if kind == "roberta":
        places = torch.arange(batch["tokens"].shape[1])
        asked |= {
            "token_type_ids": torch.zeros_like(batch["tokens"]),
            "position_ids": 2 + places[None],
        }
    theirs = built(model, kind)
    state = named(model, kind, weights)
    assert {name for name, _ in theirs.named_parameters()} <= state.keys()
    torch.manual_seed(seed)
    found = torch.func.functional_call(theirs, state, kwargs=asked)
    return found[0], found[1] if len(found) > 1 else None
