"""What a live model computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_grow.live.stage import LiveStage
from tests.toy import MODEL, tokens

BATCH = 4
TEXT = tokens(0, MODEL.vocab_size, BATCH, MODEL.max_position_embeddings)[:, :-1]


@torch.no_grad()
def logits(live: LiveStage, batch: torch.Tensor = TEXT) -> np.ndarray | None:
    """(batch, sequence, vocabulary), fp32, for token ids (batch, sequence).

    None where the last pipeline stage is not.
    """
    length = batch.shape[1]
    positions = torch.arange(length)[None]

    def forward(texts: Iterator[torch.Tensor], model: torch.nn.Module) -> tuple:
        return model(next(texts), positions, None), lambda output, non_loss_data: output

    for chunk in live.chunks:
        chunk.eval()
    outputs = get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=[iter(batch.split(1)) for _ in live.chunks],
        model=live.chunks,
        num_microbatches=len(batch),
        seq_length=length,
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )
    if not parallel_state.is_pipeline_last_stage():
        return None
    ranks = parallel_state.get_tensor_model_parallel_group()
    parts: list[torch.Tensor] = [torch.empty(0)] * ranks.size()
    dist.all_gather_object(parts, torch.cat(outputs).float(), group=ranks)  # of different sizes
    return torch.cat(parts, dim=-1).numpy()


def agreed(ranks: Iterable[np.ndarray | None]) -> np.ndarray:
    """The logits of the ranks that have them, which must be the same."""
    replicas = [values for values in ranks if values is not None]
    assert all(np.array_equal(values, replicas[0]) for values in replicas)
    return replicas[0]
