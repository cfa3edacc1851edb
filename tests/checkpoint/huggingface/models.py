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
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", _GPT2),
    "gpt2 untied": ("GPT2", {**_GPT2, "tie_word_embeddings": False, "n_inner": 48}),
    "gpt2 exact": (
        "GPT2",
        {**_GPT2, "activation_function": "gelu", "layer_norm_epsilon": 1e-3},
    ),
    "llama 2": ("Llama", {**_ROTARY, "num_key_value_heads": 4}),
    "llama 3": (
        "Llama",
        {**_ROTARY, "tie_word_embeddings": True, "head_dim": 16, "rope_parameters": _LLAMA3},
    ),
    "llama linear": ("Llama", {**_ROTARY, "rope_parameters": _LINEAR, "rms_norm_eps": 1e-3}),
    "mistral": ("Mistral", {**_ROTARY, "head_dim": 12, "sliding_window": 64}),
    "qwen2": ("Qwen2", {**_ROTARY, "tie_word_embeddings": True}),
    "qwen2 untied": ("Qwen2", {**_ROTARY, "num_key_value_heads": 4}),
    "qwen3": ("Qwen3", {**_ROTARY, "head_dim": 12}),
    "qwen3 tied": ("Qwen3", {**_ROTARY, "head_dim": 8, "tie_word_embeddings": True}),
}


def build(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A model of random weights: no bias is zero, no gain one, and no two tensors are alike."""
    family, fields = MODELS[name]
    config = getattr(transformers, f"{family}Config")(**{**fields, **changes})
    architecture = f"{family}{'LMHeadModel' if family == 'GPT2' else 'ForCausalLM'}"
    model = getattr(transformers, architecture)(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            weight.copy_(0.25 * torch.randn(weight.shape, generator=generator))
            if "norm" in key or ".ln_" in key:
                weight.add_(1.0 if key.endswith("weight") else 0.0)
    return model.to(dtype).eval()


def save(model: Any, path: Path, max_shard_size: str = "1GB") -> Path:
    """As ``transformers`` stores it."""
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return path


def tokens(model: Any) -> torch.Tensor:
    """Some text; (3, LENGTH)."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(model.config.vocab_size, (3, LENGTH), generator=generator)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """Of that text; (3, LENGTH, vocabulary)."""
    return model(tokens(model)).logits
