"""What a BERT trains on: samples with masked tokens, and how a batch of them becomes losses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch.nn import functional

from megatron_grow.config.run import RunConfig
from megatron_grow.data.check import Split
from megatron_grow.data.datasets import Datasets
from megatron_grow.data.masked import check
from megatron_grow.data.masked.chunks import Pairs
from megatron_grow.data.masked.datasets import build_masked
from megatron_grow.data.masked.samples import MaskedText
from megatron_grow.data.tokenizers.load import load_tokenizer
from megatron_grow.data.tokenizers.masking import masking_tokens
from megatron_grow.model.architecture import Loss
from megatron_grow.model.architectures import data_options_of
from megatron_grow.model.bert.module import Output

Batch = Mapping[str, torch.Tensor]
"""Samples, stacked: ``tokens``, ``token_types`` and ``padding_mask``, (batch, sequence);
``masked_positions``, ``masked_labels`` and ``masked_weights``, (batch, most masked tokens); and,
for a sentence head, ``is_next``, (batch,), 0 where the second sentence is in its place."""


def check_data(config: RunConfig, pairs: Pairs) -> tuple[Split, Split | None]:
    """Open the corpora of sentences that a run names, and check them.

    Args:
        config: the run.
        pairs: what samples are for.
    """
    return check.check_data(
        config.data,
        data_options_of(config.model, config.data),
        pairs,
        seq_lengths=_seq_lengths(config),
        vocab_size=config.model.vocabulary,
        evaluate=config.train.eval_iters > 0,
    )


def datasets(
    data: tuple[Split, Split | None], config: RunConfig, pairs: Pairs, train_samples: int
) -> Datasets:
    """Masked samples of each stage's length; as :meth:`.architecture.Architecture.datasets`."""
    named = config.data
    tokenizer = load_tokenizer(named.tokenizer, named.vocab_file, named.merge_file)
    kind = MaskedText(
        config.train.seq_length,
        config.run.seed,
        pairs,
        data_options_of(config.model, named),
        masking_tokens(tokenizer),
    )
    return build_masked(
        data,
        kind,
        _seq_lengths(config),
        train_samples=train_samples,
        valid_samples=config.train.eval_iters * config.train.global_batch_size,
        cache_dir=config.cache_dir,
    )


def _seq_lengths(config: RunConfig) -> set[int]:
    """Tokens in a sample, in each stage."""
    longest = config.train.seq_length
    return {longest, *(stage.train.get("seq_length", longest) for stage in config.stages)}


def forward_step(chunk: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor | Output, Loss]:
    """What a chunk makes of a batch, as :meth:`.architecture.Architecture.forward_step`."""
    names = ("tokens", "token_types", "padding_mask", "masked_positions", "masked_labels")
    return chunk(*(batch[name] for name in names)), partial(_losses, batch)


def counts(batch: Batch, *, sentence_head: bool) -> dict[str, torch.Tensor]:
    """As :meth:`.architecture.Architecture.counts`."""
    found = {"masked_lm_loss": batch["masked_weights"].sum()}
    if sentence_head:
        found["sentence_loss"] = batch["masked_weights"].new_full((), len(batch["is_next"]))
    return found


def example(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Text of which every fourth token is masked, by the id 0, and which is cut in two halves that
    follow each other in every other sample; as :meth:`.architecture.Architecture.example`."""
    batch, length = tokens.shape[0], tokens.shape[1] - 1
    tokens, positions = tokens[:, :-1].clone(), torch.arange(1, length, 4).expand(batch, -1)
    labels = tokens.gather(1, positions)
    return {
        "tokens": tokens.scatter(1, positions, 0),
        "token_types": (torch.arange(length) >= length // 2).long().expand(batch, -1),
        "padding_mask": torch.zeros(batch, length, dtype=torch.bool),
        "masked_positions": positions,
        "masked_labels": labels,
        "masked_weights": torch.ones(labels.shape),
        "is_next": torch.arange(batch) % 2,
    }


def logits(chunk: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Of all tokens, (batch, length, vocabulary), none of them padding."""
    types = torch.zeros_like(tokens)
    found, *_ = chunk(tokens, types, types.bool())
    return found.transpose(0, 1)


def _losses(batch: Batch, output: Output) -> dict[str, torch.Tensor]:
    """Sums and counts of a micro-batch."""
    losses, hits, sentence = output
    assert hits is not None, "labels were given"
    weights = batch["masked_weights"].t()
    masked = weights.sum()
    found = {
        "masked_lm_loss": torch.stack([(losses * weights).sum(), masked]),
        "masked_lm_accuracy": torch.stack([(hits * weights).sum(), masked]),
    }
    if sentence is not None:
        sentence, right = sentence.float(), batch["is_next"]
        number = weights.new_tensor(len(right))
        loss = functional.cross_entropy(sentence, right, reduction="sum")
        hit = (sentence.argmax(1) == right).sum()
        found["sentence_loss"] = torch.stack([loss, number])
        found["sentence_accuracy"] = torch.stack([hit.float(), number])
    return found
