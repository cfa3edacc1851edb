"""What a GPT trains on: samples of running text, and how a batch of them becomes a loss."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.utils import get_batch_on_this_cp_rank

from megatron_grow.config.run import RunConfig
from megatron_grow.data import check
from megatron_grow.data.datasets import Datasets, build_datasets
from megatron_grow.data.samples import RunningText
from megatron_grow.model.architecture import Loss


def check_data(config: RunConfig) -> tuple[check.Split, check.Split | None]:
    """Open the corpora of running text that a run names, and check them."""
    return check.check_data(
        config.data,
        seq_length=config.train.seq_length,
        vocab_size=config.model.vocabulary,
        evaluate=config.train.eval_iters > 0,
    )


def datasets(
    data: tuple[check.Split, check.Split | None], config: RunConfig, train_samples: int
) -> Datasets:
    """Running text, cut into samples; as :meth:`.architecture.Architecture.datasets`."""
    return build_datasets(
        *data,
        RunningText(config.train.seq_length, config.run.seed),
        train_samples=train_samples,
        valid_samples=config.train.eval_iters * config.train.global_batch_size,
        cache_dir=config.cache_dir,
    )


def forward_step(
    chunk: torch.nn.Module, batch: Mapping[str, torch.Tensor] | None
) -> tuple[torch.Tensor, Loss]:
    """What a chunk makes of a batch, as :meth:`.architecture.Architecture.forward_step`.

    Args:
        chunk: of a GPT.
        batch: as :class:`~megatron_grow.data.samples.CorpusSamples` has it, (batch, sequence) each.
    """
    if batch is None:
        return chunk(None, None, None), partial(_loss, None)
    batch = get_batch_on_this_cp_rank(dict(batch))
    output = chunk(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
    return output, partial(_loss, batch["loss_mask"])


def example(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Text and what follows each of its tokens; as :meth:`.architecture.Architecture.example`."""
    batch, length = tokens.shape[0], tokens.shape[1] - 1
    return {
        "tokens": tokens[:, :-1],
        "labels": tokens[:, 1:],
        "position_ids": torch.arange(length).expand(batch, -1),
        "loss_mask": torch.ones(batch, length),
    }


def logits(chunk: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Of the next tokens, (batch, length, vocabulary), after ``tokens``, (batch, length)."""
    positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
    return chunk(tokens, positions, None)


def _loss(mask: torch.Tensor | None, losses: torch.Tensor) -> dict[str, torch.Tensor]:
    """Over the tokens of a micro-batch, each (batch, tokens of this rank)."""
    assert mask is not None, "only the last pipeline stage has losses"
    count = mask.sum()
    if parallel_state.get_context_parallel_world_size() > 1:
        dist.all_reduce(count, group=parallel_state.get_context_parallel_group())
    return {"loss": torch.stack([(losses.float() * mask).sum(), count])}
