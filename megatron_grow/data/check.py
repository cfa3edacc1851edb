"""What can be wrong with a run's data, found before any work is done."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Part:
    """The training or the validation data of a run, known to be whole and long enough."""

    blend: Blend
    share: Share
    """Documents taken from every corpus."""
    corpora: list[Corpus]
    """Those of the blend, in its order."""


def check_data(
    data: DataSection, *, seq_length: int, vocab_size: int, evaluate: bool = True
) -> tuple[Part, Part | None]:
    """Check a run's corpora; cheap, so that every rank does it before any builds a model.

    Args:
        data: The section of the run file.
        seq_length: Tokens in one sample.
        vocab_size: Token ids that the model knows.
        evaluate: Whether the run reads validation samples.

    Returns:
        The training part and the validation part; None where the run has no validation.

    Raises:
        UserError: a file that is missing or truncated, a malformed blend or split, a corpus too
            short for one sample, token ids outside the model's vocabulary.
    """
    if not data.train_data_path:
        raise UserError("data.train_data_path is empty; name at least one corpus")
    train = parse_blend(data.train_data_path, "data.train_data_path")
    train_share: Share | None
    valid_share: Share | None
    if data.valid_data_path:
        valid = parse_blend(data.valid_data_path, "data.valid_data_path")
        train_share = valid_share = (0.0, 1.0)
        valid_field = "data.valid_data_path"
    else:
        valid = train
        train_share, valid_share = _parse_split(data.split)
        valid_field = f"data.split={data.split}"
    if train_share is None:
        raise UserError(f"data.split={data.split} leaves nothing to train on")
    train_part = _check_part(train, train_share, "data.train_data_path", seq_length, vocab_size)
    if valid_share is None or not evaluate:
        return train_part, None
    return train_part, _check_part(valid, valid_share, valid_field, seq_length, vocab_size)


def _parse_split(split: str) -> tuple[Share | None, Share | None]:
    """The shares of training and validation in, for example, ``969,30,1``; None for no share."""
    if not re.fullmatch(r"\s*\d*\.?\d+\s*(,\s*\d*\.?\d+\s*){0,2}", split) or not re.search(
        "[1-9]", split
    ):
        raise UserError(
            f"data.split={split} must be up to three shares, train,valid,test, such as 969,30,1"
        )
    train, valid, _ = convert_split_vector_to_split_matrix(parse_and_normalize_split(split))
    return train, valid


def _check_part(blend: Blend, share: Share, where: str, seq_length: int, vocab_size: int) -> Part:
    corpora = [open_corpus(prefix, where) for prefix in blend.prefixes]
    for corpus in corpora:
        _check_length(corpus, share, seq_length, where)
        _check_vocabulary(corpus, vocab_size, where)
    return Part(blend, share, corpora)


def _check_length(corpus: Corpus, share: Share, seq_length: int, where: str) -> None:
    # The documents of a share are rounded as in Megatron's dataset builder.
    first, last = (round(bound * len(corpus.lengths)) for bound in share)
    tokens = int(corpus.lengths[first:last].sum(dtype="int64"))
    if tokens < seq_length + 1:
        raise UserError(
            f"{where}: {corpus.prefix} has {tokens} tokens in {last - first} documents for this "
            f"part; one sample needs train.seq_length + 1 = {seq_length + 1}"
        )


def _check_vocabulary(corpus: Corpus, vocab_size: int, where: str) -> None:
    if corpus.sidecar is not None:
        found, source = corpus.sidecar.vocab_size, f"made with tokenizer {corpus.sidecar.tokenizer}"
    else:
        found, source = corpus.largest_token() + 1, "by its largest token id"
    if found > vocab_size:
        raise UserError(
            f"{where}: {corpus.prefix} has a vocabulary of {found} ({source}), larger than the "
            f"model's {vocab_size}; leave model.vocab_size out or raise it"
        )
