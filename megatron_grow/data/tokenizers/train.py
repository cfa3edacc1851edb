"""Tokenizers trained on a corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from megatron_grow.data.tokenizers.files import (
    END_OF_DOCUMENT,
    SPECIAL,
    UNKNOWN,
    byte_level,
    word_piece,
)
from megatron_grow.inputs.errors import UserError

_MOST_TRAINED = 1 << 24
"""Tokens of a vocabulary that is trained here; the largest published have a million."""
_CHARACTERS = 1000
"""Of a WordPiece that is trained here, at most; as in BERT's."""


def train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Train a byte-level BPE whose end of document is ``<|endoftext|>``, with id 0.

    The same texts give the same tokenizer, whatever the number of threads. A corpus too small for
    ``vocab_size`` tokens gives fewer.

    Raises:
        UserError: ``vocab_size`` does not hold the 256 bytes and the end of document, or is larger
            than any vocabulary.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if not len(alphabet) < vocab_size <= _MOST_TRAINED:
        raise UserError(
            f"train_tokenizer={vocab_size} must be from {len(alphabet) + 1} (256 bytes and the "
            f"end of document) to {_MOST_TRAINED}"
        )
    backend = byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_DOCUMENT],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def train_word_piece(
    texts: Callable[[], Iterable[str]], vocab_size: int, *, lower_case: bool
) -> tokenizers.Tokenizer:
    """Train a WordPiece vocabulary whose first tokens are BERT's special ones.

    The same texts give the same tokenizer. Of more than 1,000 characters, rare ones become unknown
    tokens. A corpus too small for ``vocab_size`` tokens gives fewer.

    Args:
        texts: gives them from the first on, each time that it is called.
        vocab_size: tokens.
        lower_case: put text in lower case.

    Raises:
        UserError: ``vocab_size`` does not hold the special tokens and a character, or is larger
            than any vocabulary.
    """
    least = len(SPECIAL) + 2
    if not least <= vocab_size <= _MOST_TRAINED:
        raise UserError(
            f"train_tokenizer={vocab_size} must be from {least} (the special tokens, and a "
            f"character that begins words and goes on with them) to {_MOST_TRAINED}"
        )
    backend = word_piece(models.WordPiece(unk_token=UNKNOWN), lower_case=lower_case)
    characters = _characters(backend, texts(), min(_CHARACTERS, (vocab_size - len(SPECIAL)) // 2))
    # The trainer numbers continuations as it meets them, in the order of a hash table, and numbers
    # decide between equally frequent pairs: here they have numbers before it begins.
    continued = [f"##{character}" for character in characters]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIAL, *continued],
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        continuing_subword_prefix="##",
        show_progress=False,
    )
    backend.train_from_iterator(texts(), trainer)
    model = models.WordPiece(vocab=backend.get_vocab(), unk_token=UNKNOWN)
    return word_piece(model, lower_case=lower_case)


def _characters(backend: tokenizers.Tokenizer, texts: Iterable[str], most: int) -> list[str]:
    """The characters of words, the most frequent where there are many, in the order of Unicode."""
    count: Counter[str] = Counter()
    for text in texts:
        count.update(backend.normalizer.normalize_str(text))
    found = sorted((c for c in count if not c.isspace()), key=lambda c: (-count[c], c))
    return sorted(found[:most])
