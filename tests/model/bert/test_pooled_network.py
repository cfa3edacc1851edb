"""A network whose tokens share places, against one sample at a time in plain PyTorch."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.boxes import slices
from megatron_grow.state.kinds import MAIN_PARAM
from tests.distributed import run_ranks
from tests.model.bert import pooled_reference
from tests.state.snapshot import Part, assemble, snapshot
from tests.toy import begin, layout, run_config

LENGTH, MOST = 16, 2
BERT = ModelConfig(
    architecture="bert",
    num_layers=3,
    hidden_size=32,
    num_attention_heads=4,
    ffn_hidden_size=64,
    vocab_size=128,
    make_vocab_size_divisible_by=16,
    max_position_embeddings=LENGTH,
)
SAMPLES = [(16, [3, 9]), (16, [15]), (11, [1, 2]), (3, [1])]
"""Tokens of each, and which are masked."""


def _batch() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    lengths = torch.tensor([length for length, _ in SAMPLES])
    positions = torch.tensor([masked + [0] * (MOST - len(masked)) for _, masked in SAMPLES])
    return {
        "tokens": torch.randint(0, 128, (len(SAMPLES), LENGTH), generator=draw),
        "token_types": torch.randint(0, 2, (len(SAMPLES), LENGTH), generator=draw),
        "padding_mask": torch.arange(LENGTH) >= lengths[:, None],
        "masked_positions": positions,
    }


def _said(
    model: ModelConfig, parallel: dict[str, Any], world_size: int
) -> tuple[list[Part], np.ndarray, np.ndarray]:
    """Weights, logits of masked tokens (this rank's vocabulary), logits of sentence classes."""
    config = run_config(StageSection(parallel=parallel), model=model)
    live = begin(config, world_size)
    for piece in live.pieces():
        if piece.kind == MAIN_PARAM:  # no bias stays zero, no norm one
            generator = torch.Generator().manual_seed(zlib.crc32(piece.key.encode()))
            noise = torch.randn(live.tensors[piece.key].shape, generator=generator)
            piece.data.add_(0.3 * noise[slices(piece.box)])
    live.write_back()
    with torch.no_grad():
        tokens, _, sentence = live.chunks[0](**_batch())
    return snapshot(live.pieces()), tokens.numpy(), sentence.numpy()


@pytest.mark.parametrize(
    ("norm_position", "pool_size", "ranks"), [("pre", 2, 1), ("post", 3, 1), ("post", 2, 2)]
)
def test_what_it_says_of_masked_tokens(norm_position: str, pool_size: int, ranks: int) -> None:
    """Full and short samples, alone and under sequence parallelism: in fp32, logits up to 30."""
    model = replace(BERT, options={"norm_position": norm_position, "pool_size": pool_size})
    parallel = layout(tp=ranks, sequence_parallel=ranks > 1)
    found = run_ranks(ranks, _said, model, parallel, ranks)
    tensors = logical_tensors(model)
    weights = {
        key: torch.from_numpy(values).double().view(tensors[key].checkpoint_shape)
        for (key, kind), values in assemble(tensors, [parts for parts, _, _ in found]).items()
        if kind == MAIN_PARAM
    }
    said, sentences, batch = np.concatenate([x for _, x, _ in found], -1), found[0][2], _batch()
    for number, (length, masked) in enumerate(SAMPLES):
        tokens, sentence = pooled_reference.logits(
            model,
            weights,
            batch["tokens"][number, :length],
            batch["token_types"][number, :length],
            masked,
            pool_size,
        )
        assert np.abs(said[: len(masked), number] - tokens.numpy()).max() < 2e-5
        assert np.abs(sentences[number] - sentence.numpy()).max() < 1e-5
