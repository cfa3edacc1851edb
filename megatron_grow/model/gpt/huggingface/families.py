"""The families of Hugging Face models, each a table of what ``config.json`` says and means.

Another family is another entry here, as long as a ``ModelConfig`` can express it.
"""

from __future__ import annotations

from typing import Any

from megatron_grow.model.gpt.huggingface import names
from megatron_grow.model.gpt.huggingface.family import GPTFamily
from megatron_grow.model.huggingface import Family, Rows

_ROTARY: dict[str, Any] = {
    "architecture": "gpt",
    "position_embedding_type": "rope",
    "rotary_percent": 1.0,
    "normalization": "RMSNorm",
    "add_bias_linear": False,
}
_LLAMA_FIELDS = {
    "num_hidden_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_query_groups",
    "head_dim": "kv_channels",
    "intermediate_size": "ffn_hidden_size",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "max_position_embeddings",
    "rms_norm_eps": "layernorm_epsilon",
    "tie_word_embeddings": "share_embeddings_and_output_weights",
    "initializer_range": "init_method_std",
    "attention_dropout": "attention_dropout",
}
_LLAMA_DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "attention_dropout": 0.0,
}
_GRANITE_FIELDS = {
    "attention_multiplier": "softmax_scale",
    "embedding_multiplier": "embedding_multiplier",
    "residual_multiplier": "residual_multiplier",
    "logits_scaling": "logits_scaling",
}
_WINDOW = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_LLAMA_BUFFERS = r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"


def _llama_like(
    model_type: str,
    transformers_class: str,
    rows: Rows,
    model: dict[str, Any],
    defaults: dict[str, Any],
    only: dict[str, Any],
    fields: dict[str, str] | None = None,
    **more: Any,
) -> GPTFamily:
    return GPTFamily(
        model_type=model_type,
        transformers_class=transformers_class,
        prefix="model.",
        rows=rows,
        buffers=_LLAMA_BUFFERS,
        model=_ROTARY | model,
        fields=_LLAMA_FIELDS | (fields or {}),
        activation_field="hidden_act",
        activations={"silu": "swiglu", "swish": "swiglu"},
        defaults=_LLAMA_DEFAULTS | defaults,
        only=only,
        **more,
    )


FAMILIES: dict[str, Family] = {
    family.model_type: family
    # In the order in which they are tried for a model that could be written as several.
    for family in (
        GPTFamily(
            model_type="gpt2",
            transformers_class="GPT2LMHeadModel",
            prefix="transformer.",
            rows=names.GPT2,
            buffers=r"h\.\d+\.attn\.(masked_)?bias",
            model={
                "architecture": "gpt",
                "position_embedding_type": "learned_absolute",
                "normalization": "LayerNorm",
                "add_bias_linear": True,
                "qk_layernorm": False,
            },
            fields={
                "n_layer": "num_layers",
                "n_embd": "hidden_size",
                "n_head": "num_attention_heads",
                "n_inner": "ffn_hidden_size",
                "vocab_size": "vocab_size",
                "n_positions": "max_position_embeddings",
                "n_ctx": "max_position_embeddings",
                "layer_norm_epsilon": "layernorm_epsilon",
                "tie_word_embeddings": "share_embeddings_and_output_weights",
                "initializer_range": "init_method_std",
                "resid_pdrop": "hidden_dropout",
                "embd_pdrop": "hidden_dropout",
                "attn_pdrop": "attention_dropout",
            },
            activation_field="activation_function",
            activations={
                "gelu_new": "gelu_tanh",
                "gelu_pytorch_tanh": "gelu_tanh",
                "gelu": "gelu",
                "relu2": "squared_relu",
            },
            defaults={
                "n_inner": None,
                "activation_function": "gelu_new",
                "layer_norm_epsilon": 1e-5,
                "tie_word_embeddings": True,
                "initializer_range": 0.02,
                "resid_pdrop": 0.1,
                "embd_pdrop": 0.1,
                "attn_pdrop": 0.1,
            },
            only={
                "scale_attn_weights": True,
                "scale_attn_by_inverse_layer_idx": False,
                "add_cross_attention": False,
            },
            plain_heads=True,
        ),
        _llama_like(
            "llama",
            "LlamaForCausalLM",
            names.LLAMA,
            model={"add_qkv_bias": False, "qk_layernorm": False},
            defaults={},
            only={"attention_bias": False, "mlp_bias": False},
            whole_heads=True,
        ),
        _llama_like(
            "mistral",
            "MistralForCausalLM",
            names.LLAMA,
            model={"add_qkv_bias": False, "qk_layernorm": False},
            defaults={"num_key_value_heads": 8, "sliding_window": 4096},
            only={"sliding_window": None},
        ),
        _llama_like(
            "qwen2",
            "Qwen2ForCausalLM",
            names.QWEN2,
            model={"add_qkv_bias": True, "qk_layernorm": False},
            defaults={"num_key_value_heads": 32, **_WINDOW},
            only={"sliding_window": None, "use_sliding_window": False},
        ),
        _llama_like(
            "qwen3",
            "Qwen3ForCausalLM",
            names.QWEN3,
            model={"add_qkv_bias": False, "qk_layernorm": True},
            defaults={"num_key_value_heads": 32, "head_dim": 128, **_WINDOW},
            only={"attention_bias": False, "sliding_window": None, "use_sliding_window": False},
        ),
        _llama_like(
            "granite",
            "GraniteForCausalLM",
            names.LLAMA,
            model={"add_qkv_bias": False, "qk_layernorm": False},
            defaults=dict.fromkeys(_GRANITE_FIELDS, 1.0),
            only={"attention_bias": False, "mlp_bias": False},
            fields=_GRANITE_FIELDS,
        ),
    )
}
