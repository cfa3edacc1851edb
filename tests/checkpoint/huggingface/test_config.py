"""``config.json``: real ones, and the defaults of ``transformers``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from megatron_grow.checkpoint.huggingface.config import choose_family, to_config, to_model
from megatron_grow.model.architectures import all_families

PATH = Path("somewhere/config.json")

# As they were published; what transformers 5 writes is tried in the other tests.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": (
        """{"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"],
        "attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256,
        "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
        "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
        "resid_pdrop": 0.1, "summary_activation": null, "summary_first_dropout": 0.1,
        "summary_proj_to_labels": true, "summary_type": "cls_index", "summary_use_proj": true,
        "task_specific_params": {"text-generation": {"do_sample": true, "max_length": 50}},
        "vocab_size": 50257}""",
        {
            "num_layers": 12,
            "hidden_size": 768,
            "ffn_size": 3072,
            "activation": "gelu_tanh",
            "share_embeddings_and_output_weights": True,
            "vocab_size": 50257,
            "hidden_dropout": 0.1,
        },
    ),
    "Llama 3.2 1B": (
        """{"architectures": ["LlamaForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16,
        "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0", "use_cache": true, "vocab_size": 128256}""",
        {
            "rotary_base": 500000,
            "use_rope_scaling": True,
            "rope_scaling_factor": 32.0,
            "head_dim": 64,
            "query_groups": 8,
            "vocab_size": 128256,
            "activation": "swiglu",
        },
    ),
    "Mistral 7B v0.3": (
        """{"architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
        "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "transformers_version": "4.42.0.dev0", "use_cache": true, "vocab_size": 32768}""",
        {"rotary_base": 1000000, "query_groups": 8, "head_dim": 128, "use_rope_scaling": False},
    ),
    "Qwen2.5 0.5B": (
        """{"architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896,
        "initializer_range": 0.02, "intermediate_size": 4864, "max_position_embeddings": 32768,
        "max_window_layers": 24, "model_type": "qwen2", "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": true,
        "use_mrope": false, "use_sliding_window": false, "vocab_size": 151936}""",
        {"add_qkv_bias": True, "head_dim": 64, "layernorm_epsilon": 1e-6},
    ),
    "Qwen3 0.6B": (
        """{"architectures": ["Qwen3ForCausalLM"], "attention_bias": false,
        "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128,
        "hidden_act": "silu", "hidden_size": 1024, "initializer_range": 0.02,
        "intermediate_size": 3072, "max_position_embeddings": 40960, "max_window_layers": 28,
        "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null,
        "rope_theta": 1000000, "sliding_window": null, "tie_word_embeddings": true,
        "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": true,
        "use_sliding_window": false, "vocab_size": 151936}""",
        {"qk_layernorm": True, "add_qkv_bias": False, "head_dim": 128, "hidden_size": 1024},
    ),
    "BERT base, uncased": (
        """{"architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1,
        "gradient_checkpointing": false, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
        "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
        "position_embedding_type": "absolute", "transformers_version": "4.6.0.dev0",
        "type_vocab_size": 2, "use_cache": true, "vocab_size": 30522}""",
        {
            "architecture": "bert",
            "num_layers": 12,
            "activation": "gelu",
            "layernorm_epsilon": 1e-12,
            "share_embeddings_and_output_weights": True,
            "options": {
                "norm_position": "post",
                "token_types": 2,
                "sentence_head": "none",  # without its tensors, nobody knows
                "first_position": 0,
            },
        },
    ),
    "BERT base, multilingual": (
        """{"architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1,
        "directionality": "bidi", "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
        "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "model_type": "bert",
        "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
        "pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128, "pooler_type": "first_token_transform",
        "type_vocab_size": 2, "vocab_size": 119547}""",
        {"vocab_size": 119547, "attention_dropout": 0.1},
    ),
    "Megatron BERT 345M": (
        """{"attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": 1024, "initializer_range": 0.02,
        "intermediate_size": 4096, "layer_norm_eps": 1e-12, "max_position_embeddings": 512,
        "model_type": "megatron-bert", "num_attention_heads": 16, "num_hidden_layers": 24,
        "type_vocab_size": 2, "vocab_size": 29056}""",
        {"architecture": "bert", "ffn_size": 4096, "num_layers": 24},
    ),
    "RoBERTa base": (
        """{"architectures": ["RobertaForMaskedLM"], "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0, "eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "model_type": "roberta",
        "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1,
        "type_vocab_size": 1, "vocab_size": 50265}""",
        {
            "layernorm_epsilon": 1e-5,
            "max_position_embeddings": 514,
            "options": {
                "norm_position": "post",
                "token_types": 1,
                "sentence_head": "none",
                "first_position": 2,
            },
        },
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name: str) -> None:
    text, expected = PUBLISHED[name]
    said = json.loads(text)
    model = to_model(said, PATH)
    assert {field: getattr(model, field) for field in expected} == expected
    # Written again, `transformers` reads the same configuration, token ids and all.
    family = choose_family(model, None, said)
    assert family.model_type == said["model_type"]
    written = to_config(model, family, torch.bfloat16, said)
    theirs = type(transformers.AutoConfig.for_model(family.model_type))
    before, after = theirs(**said).to_dict(), theirs(**written).to_dict()
    settled = {"dtype", "head_dim", "n_inner", "max_window_layers"}  # given, or without effect
    for field in before.keys() - settled - ({"architectures"} - said.keys()):
        assert after.get(field, False) == before[field], field


@pytest.mark.parametrize("model_type", all_families())
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    family = all_families()[model_type]
    # The class's: an instance has filled in what follows from other fields.
    fields = type(transformers.AutoConfig.for_model(model_type)).__dataclass_fields__
    theirs = {name: fields[name].default for name in family.defaults if name in fields}
    assert {"head_dim": None, **theirs} == {"head_dim": None, **family.defaults}
