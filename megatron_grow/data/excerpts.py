"""Excerpts of a corpus, to look at models with."""

from __future__ import annotations

import numpy as np
import torch

from megatron_grow.data.indexed import open_corpus
from megatron_grow.data.reading import read_text
from megatron_grow.inputs.errors import UserError


def excerpts(
    prefix: str, where: str, *, seq_length: int, tokens: int, vocab_size: int
) -> torch.Tensor:
    """Sequences of running text, spread evenly over a corpus, none over another.

    Documents follow each other as in training.

    Args:
        prefix: of the corpus, without suffix.
        where: the option that names it, for messages.
        seq_length: tokens that are predicted in one.
        tokens: that are predicted in all, as far as the corpus has them.
        vocab_size: token ids that the models know.

    Returns:
        (sequences, seq_length + 1) int64; at least two sequences.

    Raises:
        UserError: no whole corpus, a shorter one, or one with other token ids.
    """
    corpus = open_corpus(prefix, where)
    there = (len(corpus.tokens) - 1) // seq_length
    if there < 2:
        raise UserError(
            f"{where}: {prefix} has {len(corpus.tokens):,} tokens; two sequences of {seq_length} "
            f"need {2 * seq_length + 1:,}"
        )
    count = min(there, max(2, tokens // seq_length))
    starts = np.linspace(0, len(corpus.tokens) - 1 - seq_length, count, dtype=np.int64)
    texts = [read_text(corpus, [(start, start + seq_length + 1)], vocab_size) for start in starts]
    return torch.from_numpy(np.stack(texts))
