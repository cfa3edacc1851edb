"""Fields of ``config.json``: each that cannot be expressed is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from megatron_grow.checkpoint.huggingface.config import to_config, to_model
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import all_families
from tests.checkpoint.huggingface import models

PATH = Path("somewhere/config.json")
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
