"""What a rank computes with the weights of a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_grow.checkpoint.huggingface.reader import HuggingFaceReader
from megatron_grow.config.stages import StageSection
from megatron_grow.live.stage import filled
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.piece import Piece
from tests.logits import logits
from tests.toy import run_config


def logits_of(path: Path, tokens: torch.Tensor, parallel: dict[str, Any]) -> np.ndarray | None:
    """(batch, sequence, vocabulary); None where the last pipeline stage is not."""
    source = HuggingFaceReader(path)
    config = run_config(
        StageSection(parallel=parallel),
        model=source.record.model_config,
        seq_length=tokens.shape[1],
    )
    world_size = torch.distributed.get_world_size()

    def fill(pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.kind == MAIN_PARAM:
                piece.data.copy_(source.read(piece.key, MAIN_PARAM, piece.box))

    live = filled(config.resolve(world_size)[0], config, source.tensors, fill, 0)
    found = logits(live, tokens)
    live.release()
    return found


def all_logits(
    models: dict[str, tuple[Path, torch.Tensor]], parallel: dict[str, Any]
) -> dict[str, np.ndarray | None]:
    """:func:`logits_of` several models, by name."""
    return {name: logits_of(path, text, parallel) for name, (path, text) in models.items()}
