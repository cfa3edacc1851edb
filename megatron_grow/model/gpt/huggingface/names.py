"""Which part of which logical tensor each stored tensor of a family holds."""

from __future__ import annotations

from megatron_grow.model.gpt.tensors import ATTENTION, EMBEDDING, FINAL_NORM, HEAD, MLP, POSITIONS
from megatron_grow.model.huggingface import KEYS, QUERIES, VALUES, Rows

GPT2: Rows = {
    "transformer.wte.weight": (EMBEDDING, "vocab hidden"),
    "transformer.wpe.weight": (POSITIONS, "position hidden"),
    "transformer.h.{layer}.ln_1.weight": (f"{ATTENTION}linear_qkv.layer_norm_weight", "hidden"),
    "transformer.h.{layer}.ln_1.bias": (f"{ATTENTION}linear_qkv.layer_norm_bias", "hidden"),
    # GPT-2's matrices are stored (in, out).
    "transformer.h.{layer}.attn.c_attn.weight": (
        f"{ATTENTION}linear_qkv.weight",
        "hidden (qkv_head kv_group head_dim)",
    ),
    "transformer.h.{layer}.attn.c_attn.bias": (
        f"{ATTENTION}linear_qkv.bias",
        "(qkv_head kv_group head_dim)",
    ),
    "transformer.h.{layer}.attn.c_proj.weight": (
        f"{ATTENTION}linear_proj.weight",
        "(kv_group query_head head_dim) hidden",
    ),
    "transformer.h.{layer}.attn.c_proj.bias": (f"{ATTENTION}linear_proj.bias", "hidden"),
    "transformer.h.{layer}.ln_2.weight": (f"{MLP}linear_fc1.layer_norm_weight", "hidden"),
    "transformer.h.{layer}.ln_2.bias": (f"{MLP}linear_fc1.layer_norm_bias", "hidden"),
    "transformer.h.{layer}.mlp.c_fc.weight": (f"{MLP}linear_fc1.weight", "hidden ffn"),
    "transformer.h.{layer}.mlp.c_fc.bias": (f"{MLP}linear_fc1.bias", "ffn"),
    "transformer.h.{layer}.mlp.c_proj.weight": (f"{MLP}linear_fc2.weight", "ffn hidden"),
    "transformer.h.{layer}.mlp.c_proj.bias": (f"{MLP}linear_fc2.bias", "hidden"),
    "transformer.ln_f.weight": (f"{FINAL_NORM}weight", "hidden"),
    "transformer.ln_f.bias": (f"{FINAL_NORM}bias", "hidden"),
    "lm_head.weight": (HEAD, "vocab hidden"),
}

LLAMA: Rows = {
    "model.embed_tokens.weight": (EMBEDDING, "vocab hidden"),
    "model.layers.{layer}.input_layernorm.weight": (
        f"{ATTENTION}linear_qkv.layer_norm_weight",
        "hidden",
    ),
    "model.layers.{layer}.self_attn.q_proj.weight": (
        f"{ATTENTION}linear_qkv.weight",
        f"{QUERIES} hidden",
    ),
    "model.layers.{layer}.self_attn.k_proj.weight": (
        f"{ATTENTION}linear_qkv.weight",
        f"{KEYS} hidden",
    ),
    "model.layers.{layer}.self_attn.v_proj.weight": (
        f"{ATTENTION}linear_qkv.weight",
        f"{VALUES} hidden",
    ),
    "model.layers.{layer}.self_attn.o_proj.weight": (
        f"{ATTENTION}linear_proj.weight",
        "hidden (kv_group query_head head_dim)",
    ),
    "model.layers.{layer}.post_attention_layernorm.weight": (
        f"{MLP}linear_fc1.layer_norm_weight",
        "hidden",
    ),
    "model.layers.{layer}.mlp.gate_proj.weight": (f"{MLP}linear_fc1.weight", "(gate ffn) hidden"),
    "model.layers.{layer}.mlp.up_proj.weight": (f"{MLP}linear_fc1.weight", "(up ffn) hidden"),
    "model.layers.{layer}.mlp.down_proj.weight": (f"{MLP}linear_fc2.weight", "hidden ffn"),
    "model.norm.weight": (f"{FINAL_NORM}weight", "hidden"),
    "lm_head.weight": (HEAD, "vocab hidden"),
}
QWEN2: Rows = {
    **LLAMA,
    "model.layers.{layer}.self_attn.q_proj.bias": (f"{ATTENTION}linear_qkv.bias", QUERIES),
    "model.layers.{layer}.self_attn.k_proj.bias": (f"{ATTENTION}linear_qkv.bias", KEYS),
    "model.layers.{layer}.self_attn.v_proj.bias": (f"{ATTENTION}linear_qkv.bias", VALUES),
}
QWEN3: Rows = {
    **LLAMA,
    "model.layers.{layer}.self_attn.q_norm.weight": (
        f"{ATTENTION}q_layernorm.weight",
        "head_dim",
    ),
    "model.layers.{layer}.self_attn.k_norm.weight": (
        f"{ATTENTION}k_layernorm.weight",
        "head_dim",
    ),
}
