"""A GPT as one would write it in plain PyTorch for speed, under ``torch.compile``."""

from __future__ import annotations

import time
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from megatron_grow.benchmark.contestants import OPTIMIZER, tokens_of
from megatron_grow.benchmark.gpu import device
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.sections import TrainSection


class PlainGPT(nn.Module):
    """GPT-2's layers or Llama's, by the same fields as ours; heads are not grouped."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        rows = model.padded_vocab_size(1)
        self.tokens = nn.Embedding(rows, model.hidden_size)
        learned = model.position_embedding_type == "learned_absolute"
        length = model.max_position_embeddings
        self.positions = nn.Embedding(length, model.hidden_size) if learned else None
        self.layers = nn.ModuleList(_Layer(model) for _ in range(model.num_layers))
        self.norm = _norm(model)
        self.head = nn.Linear(model.hidden_size, rows, bias=False)
        if model.share_embeddings_and_output_weights:
            self.head.weight = self.tokens.weight
        if not learned:
            cosine, sine = _rotary_table(model)
            self.register_buffer("cosine", cosine, persistent=False)
            self.register_buffer("sine", sine, persistent=False)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=model.init_method_std)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss of (batch, sequence) ``tokens``."""
        hidden = self.tokens(tokens)
        turn = None
        if self.positions is None:
            turn = cast(torch.Tensor, self.cosine), cast(torch.Tensor, self.sine)
        else:
            hidden = hidden + self.positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, turn)
        logits = self.head(self.norm(hidden))
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


class _Layer(nn.Module):
    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        width, bias = model.hidden_size, model.add_bias_linear
        self.heads, self.activation = model.num_attention_heads, model.activation
        self.attention_norm, self.mlp_norm = _norm(model), _norm(model)
        self.qkv = nn.Linear(width, 3 * width, bias)
        self.out = nn.Linear(width, width, bias)
        self.up = nn.Linear(width, model.ffn_size * (2 if model.gated else 1), bias)
        self.down = nn.Linear(model.ffn_size, width, bias)

    def forward(
        self, hidden: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        qkv = self.qkv(self.attention_norm(hidden)).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, sequence, size)
        if turn is not None:
            query, key = _turned(query, *turn), _turned(key, *turn)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.out(mixed.transpose(1, 2).flatten(2))
        up = self.up(self.mlp_norm(hidden))
        if self.activation == "swiglu":
            gate, up = up.chunk(2, -1)
            return hidden + self.down(functional.silu(gate) * up)
        return hidden + self.down(functional.gelu(up, approximate="tanh"))


def _norm(model: ModelConfig) -> nn.Module:
    of = nn.RMSNorm if model.normalization == "RMSNorm" else nn.LayerNorm
    return of(model.hidden_size, eps=model.layernorm_epsilon)


def _rotary_table(model: ModelConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, (sequence, size of a head)."""
    size = model.head_dim
    frequencies = model.rotary_base ** (-torch.arange(0, size, 2) / size)
    angles = torch.outer(torch.arange(model.max_position_embeddings).float(), frequencies)
    angles = torch.cat((angles, angles), dim=1)
    return angles.cos(), angles.sin()


def _turned(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, -1)
    return (x * cosine + torch.cat((-right, left), -1) * sine).type_as(x)


class PlainTrainer:
    """Trains it by autocast over fp32 weights, with torch's fused AdamW."""

    def __init__(self, model: ModelConfig, train: TrainSection) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        with torch.device(self.device):
            module = PlainGPT(model)
        # The compiler of CPU code takes longer than a test may.
        self.model: Any = torch.compile(module) if self.device == "cuda" else module
        self.optimizer = torch.optim.AdamW(
            module.parameters(),
            lr=OPTIMIZER.lr,
            betas=(OPTIMIZER.adam_beta1, OPTIMIZER.adam_beta2),
            eps=OPTIMIZER.adam_eps,
            weight_decay=OPTIMIZER.weight_decay,
            fused=True,
        )
        tokens = tokens_of(model, train).to(self.device)
        self._inputs, self._labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def steps(self, count: int) -> float:
        """Take ``count`` steps; the seconds of one."""
        device.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            with torch.autocast(self.device, torch.bfloat16):
                loss = self.model(self._inputs, self._labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMIZER.clip_grad)
            self.optimizer.step()
            self.optimizer.zero_grad()
        device.synchronize()
        return (time.perf_counter() - began) / count
