"""Toy models of each family, built by ``transformers`` itself, in which no tensor is trivial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

LENGTH = 48
"""Tokens in a sequence: long enough for scaled rotary positions to differ."""

_ROTARY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}
_GPT2: dict[str, Any] = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "vocab_size": 90,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}
_LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}
_FACTORS = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 3.0,
}
GPTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", _GPT2),
    "gpt2 untied": ("GPT2LMHeadModel", {**_GPT2, "tie_word_embeddings": False, "n_inner": 48}),
    "gpt2 exact": (
        "GPT2LMHeadModel",
        {**_GPT2, "activation_function": "gelu", "layer_norm_epsilon": 1e-3},
    ),
    "llama 2": ("LlamaForCausalLM", {**_ROTARY, "num_key_value_heads": 4}),
    "llama 3": (
        "LlamaForCausalLM",
        {**_ROTARY, "tie_word_embeddings": True, "head_dim": 16, "rope_parameters": _LLAMA3},
    ),
    "llama linear": (
        "LlamaForCausalLM",
        {**_ROTARY, "rope_parameters": _LINEAR, "rms_norm_eps": 1e-3},
    ),
    "mistral": ("MistralForCausalLM", {**_ROTARY, "head_dim": 12, "sliding_window": 64}),
    "qwen2": ("Qwen2ForCausalLM", {**_ROTARY, "tie_word_embeddings": True}),
    "qwen2 untied": ("Qwen2ForCausalLM", {**_ROTARY, "num_key_value_heads": 4}),
    "qwen3": ("Qwen3ForCausalLM", {**_ROTARY, "head_dim": 12}),
    "qwen3 tied": ("Qwen3ForCausalLM", {**_ROTARY, "head_dim": 8, "tie_word_embeddings": True}),
    "granite": ("GraniteForCausalLM", {**_ROTARY, **_FACTORS, "tie_word_embeddings": True}),
    "granite untied": ("GraniteForCausalLM", {**_ROTARY, "logits_scaling": 8.0}),
}
_BERT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 90,
    "max_position_embeddings": 64,
}
_ROBERTA = {**_BERT, "max_position_embeddings": 66, "type_vocab_size": 1}
BERTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("BertForPreTraining", _BERT),
    "bert alone": ("BertForMaskedLM", {**_BERT, "type_vocab_size": 3, "layer_norm_eps": 1e-3}),
    "bert untied": ("BertForPreTraining", {**_BERT, "tie_word_embeddings": False}),
    "bert tanh": ("BertForMaskedLM", {**_BERT, "hidden_act": "gelu_new"}),
    "megatron-bert": ("MegatronBertForPreTraining", _BERT),
    "megatron-bert alone": ("MegatronBertForMaskedLM", {**_BERT, "tie_word_embeddings": False}),
    "roberta": ("RobertaForMaskedLM", _ROBERTA),
    "roberta untied": (
        "RobertaForMaskedLM",
        {**_ROBERTA, "tie_word_embeddings": False, "type_vocab_size": 2, "pad_token_id": 4},
    ),
}
MODELS = GPTS | BERTS


def config_of(name: str, **changes: Any) -> dict[str, Any]:
    """What ``config.json`` must say of a model, and no more."""
    class_name, fields = MODELS[name]
    model_type = getattr(transformers, class_name).config_class.model_type
    return {"model_type": model_type, "torch_dtype": "float32", **fields, **changes}


def build(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model of random weights: no bias is zero, no gain one, and no two tensors are alike."""
    class_name, fields = MODELS[name]
    kind = getattr(transformers, class_name)
    model = kind(kind.config_class(**{**fields, **changes}))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.copy_(0.25 * torch.randn(weight.shape, generator=generator))
            if "norm" in key.lower() or ".ln" in key:
                weight.add_(1.0 if key.endswith("weight") else 0.0)
        for name, bias in model.named_parameters():
            if name.endswith("decoder.bias"):  # of which the bias beside the decoder is a copy
                model.get_parameter(name.replace("decoder.", "")).copy_(bias)
    return model.to(dtype).eval()


def save(model: Any, path: Path, max_shard_size: str = "1GB") -> Path:
    """As ``transformers`` stores it."""
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return path


def load(path: Path) -> Any:
    """As the class that ``config.json`` names."""
    (class_name,) = transformers.AutoConfig.from_pretrained(path).architectures
    return getattr(transformers, class_name).from_pretrained(path)


def tokens(model: Any, length: int = LENGTH) -> torch.Tensor:
    """Some text; (3, length)."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(model.config.vocab_size, (3, length), generator=generator)


def inputs(model: Any, length: int = LENGTH) -> dict[str, torch.Tensor]:
    """That text; of a BERT some of it padded, and of two types."""
    text = tokens(model, length)
    if "Bert" not in type(model).__name__ and "Roberta" not in type(model).__name__:
        return {"input_ids": text}
    place, ends = torch.arange(length)[None], torch.tensor([length, length - 5, 7])[:, None]
    pad = model.config.pad_token_id
    text = torch.where(place < ends, text.where(text != pad, pad + 1), pad)
    types = (place >= ends // 2).long() * (model.config.type_vocab_size > 1)
    return {"input_ids": text, "attention_mask": (place < ends).long(), "token_type_ids": types}


@torch.no_grad()
def outputs(model: Any, length: int = LENGTH) -> list[torch.Tensor]:
    """Logits of that text, of each head."""
    said = model(**inputs(model, length))
    return [value for name, value in said.items() if name.endswith("logits")]


def logits(model: Any) -> torch.Tensor:
    """Those of tokens, (3, LENGTH, vocabulary)."""
    return outputs(model)[0]
