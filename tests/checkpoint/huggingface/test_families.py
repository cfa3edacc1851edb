"""As which family of ``transformers`` a model is exported, if as any."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_grow.checkpoint.huggingface.config import choose_family, export_note
from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError

GPT2 = ModelConfig(vocab_size=96, activation="gelu_tanh")
LLAMA = ModelConfig(
    vocab_size=96,
    position_embedding_type="rope",
    normalization="RMSNorm",
    activation="swiglu",
    add_bias_linear=False,
)
NOT_GPT2 = {
    "num_query_groups": 4,
    "kv_channels": 32,
    "normalization": "RMSNorm",
    "add_bias_linear": False,
    "qk_layernorm": True,
}
NOT_LLAMA = {
    "rotary_percent": 0.5,
    "activation": "squared_relu",
    "normalization": "LayerNorm",
    "add_bias_linear": True,
    "position_embedding_type": "learned_absolute",
}


def test_whether_a_grown_model_can_be_exported_is_told() -> None:
    heads = {"num_attention_heads": 2 * GPT2.num_attention_heads}
    grouped = replace(GPT2, **heads, num_query_groups=GPT2.num_attention_heads)
    deeper = replace(GPT2, num_layers=2 * GPT2.num_layers)
    assert export_note(GPT2, deeper) == "can be exported to Hugging Face as gpt2"
    told = export_note(GPT2, grouped)
    assert told.startswith("cannot be exported to Hugging Face as gpt2 any more: model.num_query")
    assert export_note(grouped, grouped) == "cannot be exported to Hugging Face"
    assert "llama, mistral" in export_note(LLAMA, replace(LLAMA, num_layers=2))


def test_the_family_follows_from_the_model() -> None:
    assert choose_family(GPT2, None, {}).model_type == "gpt2"
    assert choose_family(LLAMA, None, {}).model_type == "llama"
    assert choose_family(LLAMA, None, {"model_type": "mistral"}).model_type == "mistral"
    assert choose_family(LLAMA, "mistral", {"model_type": "llama"}).model_type == "mistral"
    assert choose_family(replace(LLAMA, add_qkv_bias=True), None, {}).model_type == "qwen2"
    assert choose_family(replace(LLAMA, qk_layernorm=True), None, {}).model_type == "qwen3"
    factors = replace(LLAMA, residual_multiplier=0.5)
    assert choose_family(factors, None, {"model_type": "llama"}).model_type == "granite"
    # A grown model may no longer be what it was.
    narrow = replace(LLAMA, num_attention_heads=10, kv_channels=64)
    assert choose_family(narrow, None, {"model_type": "llama"}).model_type == "mistral"


@pytest.mark.parametrize(
    ("model", "field", "value"),
    [
        *((GPT2, field, value) for field, value in NOT_GPT2.items()),
        *((LLAMA, field, value) for field, value in NOT_LLAMA.items()),
    ],
)
def test_a_model_of_no_family_is_refused_by_name(
    model: ModelConfig, field: str, value: Any
) -> None:
    with pytest.raises(UserError, match=f"no Hugging Face family .*model.{field}={value}"):
        choose_family(replace(model, **{field: value}), None, {})


def test_a_family_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"as qwen2: model\.add_qkv_bias=False"):
        choose_family(LLAMA, "qwen2", {})
    with pytest.raises(UserError, match=r"as llama: model\.logits_scaling=4\.0$"):
        choose_family(replace(LLAMA, logits_scaling=4.0), "llama", {})
    with pytest.raises(
        UserError, match=r"no Hugging Face family .*gpt2: model\.softmax_scale=0\.5;"
    ):
        choose_family(replace(GPT2, softmax_scale=0.5), None, {})
    with pytest.raises(UserError, match="family=bert is not one of"):
        choose_family(LLAMA, "bert", {})
    both = replace(LLAMA, use_rope_scaling=True, rotary_seq_len_interpolation_factor=2.0)
    with pytest.raises(UserError, match="rotary_seq_len_interpolation_factor with"):
        choose_family(both, None, {})
