"""What a rank computes with the weights of a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

from megatron_grow.checkpoint.huggingface.source import HuggingFaceSource
from megatron_grow.config.stages import StageSection
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.train.live_stage import LiveStage
from tests.toy import run_config


def logits(path: Path, tokens: torch.Tensor, parallel: dict[str, Any]) -> np.ndarray | None:
    """(batch, sequence, padded vocabulary); None where the last pipeline stage is not."""
    source = HuggingFaceSource(path)
    batch, length = tokens.shape
    config = run_config(
        StageSection(parallel=parallel), model=source.record.model_config, seq_length=length
    )
    world_size = torch.distributed.get_world_size()
    live = LiveStage(config.resolve(world_size)[0], config, source.tensors)
    for piece in live.pieces():
        if piece.kind == MAIN_PARAM:
            piece.data.copy_(source.read(piece.key, MAIN_PARAM, piece.box))
    live.publish()
    positions = torch.arange(length).expand(batch, -1)

    def forward(_: None, model: torch.nn.Module) -> tuple:
        return model(tokens, positions, None), lambda output, non_loss_data: output

    for chunk in live.chunks:
        chunk.eval()
    outputs = get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=None,
        model=live.chunks,
        num_microbatches=1,
        seq_length=length,
        micro_batch_size=batch,
        forward_only=True,
        collect_non_loss_data=True,
    )
    found = None
    if parallel_state.is_pipeline_last_stage():
        found = gather_from_tensor_model_parallel_region(outputs[0]).detach().numpy()
    live.release()
    return found


def all_logits(
    models: dict[str, tuple[Path, torch.Tensor]], parallel: dict[str, Any]
) -> dict[str, np.ndarray | None]:
    """:func:`logits` of several models, by name."""
    return {name: logits(path, text, parallel) for name, (path, text) in models.items()}
