"""Small checkpoints, and what their tensors hold by torch's own reader."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from megatron_grow.config.model import ModelConfig
from megatron_grow.convert.command import main

LLAMA = ModelConfig(
    num_layers=4,
    hidden_size=16,
    num_attention_heads=4,
    num_query_groups=2,
    ffn_hidden_size=24,
    vocab_size=60,
    make_vocab_size_divisible_by=16,
    max_position_embeddings=16,
    position_embedding_type="rope",
    normalization="RMSNorm",
    activation="swiglu",
    add_bias_linear=False,
    share_embeddings_and_output_weights=False,
)
GPT = ModelConfig(
    num_layers=4,
    hidden_size=16,
    num_attention_heads=4,
    ffn_hidden_size=32,
    vocab_size=60,
    make_vocab_size_divisible_by=16,
    max_position_embeddings=16,
)


def command(*argv: object) -> int:
    """Run the converter in this process; its exit code."""
    return main([str(argument) for argument in argv])


def by_torch(checkpoint: Path) -> dict[str, torch.Tensor]:
    """All tensors of a ``torch_dist`` checkpoint, read by torch.distributed.checkpoint alone."""
    metadata = dcp.FileSystemReader(checkpoint).read_metadata()
    state = {
        name: torch.empty(tuple(stored.size), dtype=stored.properties.dtype)
        for name, stored in metadata.state_dict_metadata.items()
        if isinstance(stored, TensorStorageMetadata)
    }
    dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    return state


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two states are the same, bit for bit."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )
