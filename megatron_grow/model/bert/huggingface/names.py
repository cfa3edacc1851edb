"""Which part of which logical tensor each stored tensor of a family holds."""

from __future__ import annotations

from megatron_grow.model.bert.tensors import (
    ATTENTION,
    ATTENTION_NORM,
    EMBEDDING,
    EMBEDDING_NORM,
    FINAL_NORM,
    HEAD,
    HEAD_BIAS,
    LM_DENSE,
    LM_NORM,
    MLP,
    MLP_NORM,
    POOLER,
    POSITIONS,
    SENTENCE_HEAD,
    TOKEN_TYPES,
)
from megatron_grow.model.huggingface import KEYS, QUERIES, VALUES, Rows

DECODER_BIAS = "decoder.bias"
"""How the second name of the head's bias ends."""


def _with_bias(stored: str, key: str, rows: str, columns: str | None = None) -> Rows:
    """A matrix and its bias; without ``columns`` a norm's gain and bias."""
    return {
        f"{stored}.weight": (f"{key}weight", f"{rows} {columns}" if columns else rows),
        f"{stored}.bias": (f"{key}bias", rows),
    }


def _encoder(prefix: str) -> Rows:
    """What all families have: the embeddings, and the projections of the layers."""
    layer = f"{prefix}.encoder.layer.{{layer}}"
    qkv = f"{ATTENTION}linear_qkv."
    return {
        f"{prefix}.embeddings.word_embeddings.weight": (EMBEDDING, "vocab hidden"),
        f"{prefix}.embeddings.position_embeddings.weight": (POSITIONS, "position hidden"),
        f"{prefix}.embeddings.token_type_embeddings.weight": (TOKEN_TYPES, "token_type hidden"),
        **_with_bias(f"{layer}.attention.self.query", qkv, QUERIES, "hidden"),
        **_with_bias(f"{layer}.attention.self.key", qkv, KEYS, "hidden"),
        **_with_bias(f"{layer}.attention.self.value", qkv, VALUES, "hidden"),
        **_with_bias(
            f"{layer}.attention.output.dense",
            f"{ATTENTION}linear_proj.",
            "hidden",
            "(kv_group query_head head_dim)",
        ),
        **_with_bias(f"{layer}.intermediate.dense", f"{MLP}linear_fc1.", "ffn", "hidden"),
        **_with_bias(f"{layer}.output.dense", f"{MLP}linear_fc2.", "hidden", "ffn"),
    }


def _post_norms(prefix: str) -> Rows:
    layer = f"{prefix}.encoder.layer.{{layer}}"
    return {
        **_with_bias(f"{prefix}.embeddings.LayerNorm", EMBEDDING_NORM, "hidden"),
        **_with_bias(f"{layer}.attention.output.LayerNorm", ATTENTION_NORM, "hidden"),
        **_with_bias(f"{layer}.output.LayerNorm", MLP_NORM, "hidden"),
    }


def _head(prefix: str, dense: str, norm: str) -> Rows:
    return {
        **_with_bias(f"{prefix}.{dense}", LM_DENSE, "transformed", "hidden"),
        **_with_bias(f"{prefix}.{norm}", LM_NORM, "hidden"),
        f"{prefix}.decoder.weight": (HEAD, "vocab hidden"),
        f"{prefix}.bias": (HEAD_BIAS, "vocab"),
        f"{prefix}.{DECODER_BIAS}": (HEAD_BIAS, "vocab"),
    }


_HEADS: Rows = {
    **_head("cls.predictions", "transform.dense", "transform.LayerNorm"),
    **_with_bias("bert.pooler.dense", POOLER, "transformed", "hidden"),
    **_with_bias("cls.seq_relationship", SENTENCE_HEAD, "sentence_class", "hidden"),
}
BERT: Rows = {**_encoder("bert"), **_post_norms("bert"), **_HEADS}
MEGATRON_BERT: Rows = {
    **_encoder("bert"),
    **_with_bias(
        "bert.encoder.layer.{layer}.attention.ln", f"{ATTENTION}linear_qkv.layer_norm_", "hidden"
    ),
    **_with_bias("bert.encoder.layer.{layer}.ln", f"{MLP}linear_fc1.layer_norm_", "hidden"),
    **_with_bias("bert.encoder.ln", FINAL_NORM, "hidden"),
    **_HEADS,
}
ROBERTA: Rows = {
    **_encoder("roberta"),
    **_post_norms("roberta"),
    **_head("lm_head", "dense", "layer_norm"),
}
