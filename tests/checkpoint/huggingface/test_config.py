"""``config.json``: real ones, the defaults of ``transformers``, and every refusal by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from megatron_grow.checkpoint.huggingface.config import (
    choose_family,
    export_note,
    to_config,
    to_model,
)
from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import all_families
from tests.checkpoint.huggingface import models

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


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gpt2", {"model_type": "mixtral"}, "model_type='mixtral' is not one of gpt2, llama, mistral"),
    ("gpt2", {"model_type": None}, "model_type=None is not one of"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True"),
    ("gpt2", {"activation_function": "relu"}, "activation_function='relu' .* gelu_new"),
    ("gpt2", {"n_ctx": 32}, "n_ctx=32 differs from n_positions=64"),
    ("gpt2", {"embd_pdrop": 0.2}, "embd_pdrop=0.2 differs from resid_pdrop=0.1"),
    ("gpt2", {"rope_theta": 1e4}, "not known here: rope_theta=10000.0;"),
    ("gpt2", {"n_embd": None}, "n_embd is missing"),
    ("gpt2", {"n_layer": -1}, "n_layer=-1 must be a whole number"),
    ("gpt2", {"n_layer": "2"}, "n_layer='2' must be a whole number"),
    ("gpt2", {"n_head": 5}, "num_attention_heads=5 does not divide"),
    ("llama 2", {"hidden_act": "gelu"}, "hidden_act='gelu' .* silu"),
    ("llama 2", {"attention_bias": True}, "attention_bias=True .* only False"),
    ("llama 2", {"mlp_bias": True}, "mlp_bias=True .* only False"),
    ("llama 2", {"num_attention_heads": 5, "head_dim": 8, "num_key_value_heads": 5}, "hidden_size"),
    ("llama 2", {"sliding_window": 16}, "sliding_window=16"),
    ("llama 2", {"embedding_multiplier": 12.0}, "not known here: embedding_multiplier=12.0;"),
    ("llama 2", {"quantization_config": {"bits": 4}}, "quantization_config is set"),
    ("llama 2", {"num_experts": 8}, "num_experts is set: experts"),
    ("llama 2", {"auto_map": {"AutoModel": "x.Y"}}, "auto_map is set"),
    ("llama 2", {"rms_norm_eps": float("nan")}, "rms_norm_eps=nan must be a number"),
    ("llama 2", {"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes' must be true or false"),
    ("llama 2", {"intermediate_size": None}, "intermediate_size is missing"),
    ("llama 2", {"rope_theta": 10000.5}, "rope_theta=10000.5"),
    ("llama 2", {"rope_theta": float("inf")}, "rope_theta=inf"),
    ("llama 2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    ("llama 2", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
    ("llama 2", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
    ("llama 2", {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type='yarn'"),
    ("llama 2", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type='longrope'"),
    ("llama 2", {"rope_scaling": {"type": "linear"}}, "factor=None must be a number"),
    ("llama 2", {"rope_scaling": {"type": "linear", "factor": 2.0, "x": 1}}, "x=1 is not known"),
    ("llama 2", {"rope_scaling": LLAMA3 | {"low_freq_factor": 2.0}}, "low_freq_factor=2.0"),
    ("llama 2", {"rope_scaling": LLAMA3 | {"high_freq_factor": 8}}, "high_freq_factor=8"),
    (
        "llama 2",
        {"rope_scaling": LLAMA3 | {"original_max_position_embeddings": 4096}},
        "original_max_position_embeddings=4096",
    ),
    (
        "llama 2",
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
        "rope_theta is 500000.0 in one place and 10000.0 in another",
    ),
    (
        "llama 2",
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        "full_attention",
    ),
    ("mistral", {"sliding_window": 63}, "sliding_window=63 is shorter than max_position_emb.*=64"),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "shorter"),
    ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
    ("qwen3", {"attention_bias": True}, "attention_bias=True"),
    ("bert", {"is_decoder": True}, "is_decoder=True .* only False"),
    ("bert", {"add_cross_attention": True}, "add_cross_attention=True .* only False"),
    ("bert", {"position_embedding_type": "relative_key"}, "'relative_key' .* only 'absolute'"),
    ("bert", {"hidden_act": "relu"}, "hidden_act='relu' .* gelu, gelu_new, .* can"),
    ("roberta", {"hidden_act": "gelu_new"}, "hidden_act='gelu_new' .* gelu can"),
    ("bert", {"num_attention_heads": 5}, "num_attention_heads=5 does not divide"),
    ("bert", {"type_vocab_size": 0}, "type_vocab_size=0 must be a whole number of at least 1"),
    ("bert", {"type_vocab_size": None}, "type_vocab_size=None must be"),
    ("bert", {"embedding_size": 16}, "not known here: embedding_size=16;"),
    ("bert", {"pruned_heads": {"1": [0]}}, "not known here: pruned_heads"),
    ("megatron-bert", {"hidden_act": "relu"}, "hidden_act='relu'"),
    ("roberta", {"pad_token_id": None}, "pad_token_id=None must be a whole number of at least 0"),
    ("roberta", {"pad_token_id": -1}, "pad_token_id=-1 must be"),
]


@pytest.mark.parametrize(
    ("name", "changes", "message"), REFUSED, ids=[f"{n} {next(iter(c))}" for n, c, _ in REFUSED]
)
def test_what_cannot_be_expressed_is_refused_by_name(
    name: str, changes: dict[str, Any], message: str
) -> None:
    to_model(models.config_of(name), PATH)
    with pytest.raises(UserError, match=message) as caught:
        to_model(models.config_of(name, **changes), PATH)
    text = str(caught.value)
    assert text.startswith(str(PATH))
    assert "\n" not in text


ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    ("mistral", {"sliding_window": 64}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {"use_sliding_window": False, "sliding_window": 8}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    ("qwen2", {"layer_types": ["full_attention"] * 2, "use_mrope": False}),
    ("llama 2", {"num_experts": 0, "quantization_config": None, "rope_scaling": None}),
    ("llama 2", {"rope_scaling": {"type": "default"}, "rope_theta": 10000}),
    ("bert", {"is_decoder": False, "position_embedding_type": "absolute", "pruned_heads": {}}),
    ("bert", {"pad_token_id": 3, "classifier_dropout": 0.5, "directionality": "bidi"}),
    ("megatron-bert", {"pad_token_id": 3}),
    ("roberta", {"pad_token_id": 1, "bos_token_id": 0, "classifier_dropout": 0.5}),
]


@pytest.mark.parametrize(("name", "changes"), ACCEPTED)
def test_what_is_switched_off_changes_nothing(name: str, changes: dict[str, Any]) -> None:
    assert to_model(models.config_of(name, **changes), PATH) == to_model(
        models.config_of(name), PATH
    )


# As versions of transformers before 5 wrote into every config.json, some with other values.
OLDER = """{"_attn_implementation_autoset": true, "_commit_hash": "607a30d783dfa663caf39e0",
    "_flash_attn_2_enabled": true, "_num_labels": 1,
    "chunk_size_feed_forward": 0, "cross_attention_hidden_size": null,
    "early_stopping": true, "exponential_decay_length_penalty": null, "is_decoder": true,
    "length_penalty": 1.0, "max_sequence_length": 2048, "no_repeat_ngram_size": 3, "num_beams": 4,
    "num_beam_groups": 1, "num_labels": 1, "num_return_sequences": 1, "output_past": true,
    "predict_special_tokens": true, "prefix": "", "pruned_heads": {}, "torchscript": true,
    "typical_p": 1.0, "use_bfloat16": true, "xla_device": true}"""


@pytest.mark.parametrize("name", models.GPTS)
def test_what_says_nothing_of_the_function_is_known(name: str) -> None:
    """All that transformers has for generation and for every model, and what it had before."""
    generation = vars(transformers.GenerationConfig()).keys() - {"_from_model_config"}
    defaults = transformers.GenerationConfig._get_default_generation_params()
    common = transformers.PreTrainedConfig().to_dict()
    matters = {"model_type", "architectures", "dtype", "is_encoder_decoder"}
    said = dict.fromkeys(generation | defaults.keys(), 7)
    said |= dict.fromkeys(common.keys() - matters, 7)
    said |= json.loads(OLDER)
    original = models.config_of(name, **said)
    model = to_model(original, PATH)
    assert model == to_model(models.config_of(name), PATH)
    written = to_config(model, all_families()[original["model_type"]], torch.float32, original)
    assert {field: written.get(field) for field in said if said[field]} == {
        field: value for field, value in said.items() if value
    }


def test_all_unknown_fields_are_listed_at_once() -> None:
    unknown = {"logit_scale": 2.0, "is_encoder_decoder": True, "pruned_heads": {"1": [0]}}
    changes = unknown | {"num_beams": 4, "router_aux_loss_coef": 0.0}
    with pytest.raises(UserError) as caught:
        to_model(models.config_of("gpt2", **changes), PATH)
    assert str(caught.value) == (
        f"{PATH}: not known here: logit_scale=2.0, is_encoder_decoder=True, "
        "pruned_heads={'1': [0]}; take out what does not change what the model computes"
    )


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
