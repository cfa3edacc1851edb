"""What can be wrong with a run's data, found before any work is done."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)

from megatron_grow.config.errors import UserError
from megatron_grow.config.sections import DataSection
from megatron_grow.data.blend import Blend, parse_blend
from megatron_grow.data.indexed import Corpus, open_corpus

Share = tuple[float, float]
"""Where a part of a corpus begins and ends, as fractions of its documents."""
_SPLIT = re.compile(r"\s*\d*\.?\d+\s*(,\s*\d*\.?\d+\s*){0,2}", re.ASCII)


@dataclass(frozen=True)
class Part:
    """The training or the validation data of a run, known to be whole and long enough."""

    blend: Blend
    share: Share
    """Documents taken from every corpus."""
    corpora: list[Corpus]
    """Those of the blend, in its order."""
    vocab_size: int
    """Token ids that the model knows."""

    def documents(self, corpus: Corpus) -> tuple[int, int]:
        """The first document of the part and the one after its last, rounded as in Megatron."""
        first, last = (round(bound * corpus.documents) for bound in self.share)
        return first, last


def check_data(
    data: DataSection, *, seq_length: int, vocab_size: int, evaluate: bool = True
) -> tuple[Part, Part | None]:
    """Check a run's corpora and open them; cheap, so that every rank does it before any model.

    Args:
        data: The section of the run file.
        seq_length: Tokens in one sample.
        vocab_size: Token ids that the model knows.
        evaluate: Whether the run reads validation samples.

    Returns:
        The training part and the validation part; None where the run has no validation.

    Raises:
        UserError: a file that is missing or damaged, a malformed blend or split, a corpus too
            short for one sample or of another tokenizer, token ids outside the model's vocabulary.
    """
    if not data.train_data_path:
        raise UserError("data.train_data_path is empty; name at least one corpus")
    field = "data.train_data_path"
    blend = parse_blend(data.train_data_path, field)
    shares = ((0.0, 1.0), None) if data.valid_data_path else _parse_split(data.split)
    if shares[0] is None:
        raise UserError(f"data.split={data.split} leaves nothing to train on")
    opened = _open_corpora(blend, data, field, vocab_size)
    train = Part(blend, shares[0], opened, vocab_size)
    _check_lengths(train, seq_length, field)
    if not evaluate:
        return train, None
    if data.valid_data_path:
        field = "data.valid_data_path"
        blend = parse_blend(data.valid_data_path, field)
        valid = Part(blend, (0.0, 1.0), _open_corpora(blend, data, field, vocab_size), vocab_size)
    elif shares[1] is not None:
        field = f"data.split={data.split}"
        valid = Part(blend, shares[1], opened, vocab_size)
    else:
        return train, None
    _check_lengths(valid, seq_length, field)
    return train, valid


def _parse_split(split: str) -> tuple[Share | None, Share | None]:
    """The shares of training and validation in, for example, ``969,30,1``; None for no share."""
    shares = [float(share) for share in split.split(",")] if _SPLIT.fullmatch(split) else []
    if not 0 < sum(shares) < math.inf:
        raise UserError(
            f"data.split={split} must be up to three shares, train,valid,test, such as 969,30,1"
        )
    train, valid, _ = convert_split_vector_to_split_matrix(parse_and_normalize_split(split))
    return train, valid


def _open_corpora(blend: Blend, data: DataSection, where: str, vocab_size: int) -> list[Corpus]:
    corpora = [open_corpus(prefix, where) for prefix in blend.prefixes]
    for corpus in corpora:
        _check_vocabulary(corpus, vocab_size, where)
    return corpora


def _check_lengths(part: Part, seq_length: int, where: str) -> None:
    for corpus in part.corpora:
        first, last = part.documents(corpus)
        tokens = corpus.begin(last) - corpus.begin(first)
        if tokens < seq_length + 1:
            raise UserError(
                f"{where}: {corpus.prefix} has {tokens} tokens in {last - first} documents for "
                f"this part; one sample needs train.seq_length + 1 = {seq_length + 1}"
            )


def _check_vocabulary(corpus: Corpus, vocab_size: int, where: str) -> None:
    if corpus.sidecar is not None and corpus.sidecar.vocab_size > vocab_size:
        raise UserError(
            f"{where}: {corpus.prefix} has a vocabulary of {corpus.sidecar.vocab_size} (made with "
            f"tokenizer {corpus.sidecar.tokenizer}), larger than the model's {vocab_size}; leave "
            "model.vocab_size out or raise it"
        )
    smallest, largest = corpus.extreme_tokens()
    if smallest < 0:
        raise UserError(f"{where}: {corpus.prefix}.bin is damaged: it has the token id {smallest}")
    if largest >= vocab_size:
        raise UserError(
            f"{where}: {corpus.prefix} has a vocabulary of {largest + 1} (by its largest token "
            f"id), larger than the model's {vocab_size}; leave model.vocab_size out or raise it"
        )
