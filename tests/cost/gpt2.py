"""The GPT-2 shapes of the zero/one-layer paper (Bu 2025)."""

from __future__ import annotations

from megatron_grow.config.model import ModelConfig


def gpt2(num_layers: int, hidden_size: int, **fields) -> ModelConfig:
    """Context 1,024, tied head, no biases; a vocabulary of 50,304, as nanoGPT pads it."""
    return ModelConfig(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_attention_heads=hidden_size // 64,
        vocab_size=50_304,
        add_bias_linear=False,
        **fields,
    )
