"""Reading what samples are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from megatron_grow.data.indexed import Corpus
from megatron_grow.inputs.errors import UserError

Spans = Sequence[Sequence[int]]
"""Where each piece of a text begins and ends in its corpus, in tokens."""


def read_text(corpus: Corpus, spans: Spans, vocab_size: int) -> np.ndarray:
    """The pieces of a text, joined: (tokens,) int64.

    Args:
        corpus: Where it lies.
        spans: The pieces.
        vocab_size: Token ids that are known.

    Raises:
        UserError: a token id outside the vocabulary; a file that was cut since it was opened.
    """
    text = np.concatenate([corpus.tokens.read(*span) for span in spans], dtype=np.int64)
    if text.view(np.uint64).max() >= vocab_size:  # unsigned: a negative id is large
        _refuse(corpus, text, spans, vocab_size)
    return text


def _refuse(corpus: Corpus, text: np.ndarray, spans: Spans, vocab_size: int) -> NoReturn:
    wrong = int((text.view(np.uint64) >= vocab_size).argmax())
    position = np.concatenate([np.arange(*span) for span in spans])[wrong]
    raise UserError(
        f"{corpus.prefix}.bin: token {position} of the corpus has the id {text[wrong]}, and the "
        f"vocabulary ends at {vocab_size - 1}; the corpus is damaged or of another tokenizer"
    )
