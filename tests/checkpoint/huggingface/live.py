"""What a rank computes with the weights of a source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_grow.checkpoint.huggingface.reader import HuggingFaceReader
from megatron_grow.config.stages import StageSection
from megatron_grow.live.stage import LiveStage, filled
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.piece import Piece
from tests.logits import logits
from tests.toy import run_config

Inputs = dict[str, torch.Tensor]
"""As ``transformers`` takes them."""


def stage_of(path: Path, length: int, parallel: dict[str, Any]) -> LiveStage:
    """A model of Hugging Face, live, for sequences of one length."""
    source = HuggingFaceReader(path)
    config = run_config(
        StageSection(parallel=parallel), model=source.record.model_config, seq_length=length
    )

    def fill(pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.kind == MAIN_PARAM:
                piece.data.copy_(source.read(piece.key, MAIN_PARAM, piece.box))

    return filled(config.resolve(dist.get_world_size())[0], config, source.tensors, fill, 0)


def gpt_logits(path: Path, inputs: Inputs, parallel: dict[str, Any]) -> list[np.ndarray] | None:
    """(batch, sequence, vocabulary); None where the last pipeline stage is not."""
    tokens = inputs["input_ids"]
    live = stage_of(path, tokens.shape[1], parallel)
    found = logits(live, tokens)
    live.release()
    return None if found is None else [found]


def bert_logits(path: Path, inputs: Inputs, parallel: dict[str, Any]) -> list[np.ndarray] | None:
    """The same, and where there is a sentence head its logits, (batch, 2)."""
    batch, length = inputs["input_ids"].shape
    live = stage_of(path, length, parallel)
    given = [inputs["input_ids"], inputs["token_type_ids"], inputs["attention_mask"] == 0]

    def forward(texts: Iterator[tuple[torch.Tensor, ...]], model: torch.nn.Module) -> tuple:
        return model(*next(texts)), lambda output, non_loss_data: output

    for chunk in live.chunks:
        chunk.eval()
    samples = list(zip(*(tensor.split(1) for tensor in given), strict=True))
    outputs = get_forward_backward_func()(
        forward_step_func=forward,
        data_iterator=[iter(samples) for _ in live.chunks],
        model=live.chunks,
        num_microbatches=batch,
        seq_length=length,
        micro_batch_size=1,
        forward_only=True,
        collect_non_loss_data=True,
    )
    heads = None
    if parallel_state.is_pipeline_last_stage():
        tokens, _, sentences = zip(*outputs, strict=True)
        ranks = parallel_state.get_tensor_model_parallel_group()
        parts: list[torch.Tensor] = [torch.empty(0)] * ranks.size()
        dist.all_gather_object(parts, torch.cat(tokens, dim=1).transpose(0, 1), group=ranks)
        heads = [torch.cat(parts, dim=-1).detach().numpy()]
        if sentences[0] is not None:
            heads.append(torch.cat(sentences).detach().numpy())
    live.release()
    return heads


def all_logits(
    gpts: dict[str, tuple[Path, Inputs]],
    berts: dict[str, tuple[Path, Inputs]],
    parallel: dict[str, Any],
) -> dict[str, list[np.ndarray] | None]:
    """Those of several models, by name."""
    found = {name: gpt_logits(path, text, parallel) for name, (path, text) in gpts.items()}
    return found | {name: bert_logits(path, text, parallel) for name, (path, text) in berts.items()}
