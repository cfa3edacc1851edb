"""What can be wrong with a run's data, found before any work is done."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)

from megatron_grow.config.sections import DataSection
from megatron_grow.data.blend import Blend, parse_blend
from megatron_grow.data.indexed import Corpus, open_corpus
from megatron_grow.data.tokenizers.load import load_tokenizer, tokenizer_digest
from megatron_grow.inputs.errors import UserError

Share = tuple[float, float]
"""Where a split of a corpus begins and ends, as fractions of its documents."""
_SPLIT = re.compile(r"\s*\d*\.?\d+\s*(,\s*\d*\.?\d+\s*){0,2}", re.ASCII)


@dataclass(frozen=True)
class Split:
    """The training or the validation data of a run, known to be whole and long enough."""

    blend: Blend
    share: Share
    """Documents taken from every corpus."""
    corpora: list[Corpus]
    """Those of the blend, in its order."""
    vocab_size: int
    """Token ids that the model knows."""

    def documents(self, corpus: Corpus) -> tuple[int, int]:
        """The first document of the split and the one after its last, rounded as in Megatron."""
        first, last = (round(bound * corpus.documents) for bound in self.share)
        return first, last


def check_data(
    data: DataSection, *, seq_length: int, vocab_size: int, evaluate: bool = True
) -> tuple[Split, Split | None]:
    """As :func:`check_corpora`, of running text in samples of ``seq_length`` tokens."""

    def accepts(split: Split, where: str) -> None:
        for corpus in split.corpora:
            _check_running(corpus, where)
            _check_length(split, corpus, seq_length, where)

    return check_corpora(data, accepts, vocab_size=vocab_size, evaluate=evaluate)


def check_corpora(
    data: DataSection,
    accepts: Callable[[Split, str], None],
    *,
    vocab_size: int,
    evaluate: bool = True,
) -> tuple[Split, Split | None]:
    """Check a run's corpora and open them; cheap, so that every rank does it before any model.

    Args:
        data: The section of the run file.
        accepts: Raises :class:`UserError` unless samples can be made of a split that a field names.
        vocab_size: Token ids that the model knows.
        evaluate: Whether the run reads validation samples.

    Returns:
        The training split and the validation split; None where the run has no validation.

    Raises:
        UserError: a file that is missing or damaged, a malformed blend or split, a corpus that is
            not accepted or of another tokenizer, token ids outside the model's vocabulary.
    """
    train_field, valid_field = "data.train_data_path", "data.valid_data_path"
    if not data.train_data_path:
        raise UserError(f"{train_field} is empty; name at least one corpus")
    train_blend = valid_blend = parse_blend(data.train_data_path, train_field)
    train_share: Share | None = (0.0, 1.0)
    valid_share: Share | None = (0.0, 1.0)
    if data.valid_data_path:
        valid_blend = parse_blend(data.valid_data_path, valid_field)
    else:
        train_share, valid_share = _parse_split(data.split)
        valid_field = f"data.split={data.split}"
    if train_share is None:
        raise UserError(f"data.split={data.split} leaves nothing to train on")
    train = Split(train_blend, train_share, _open(train_blend, train_field), vocab_size)
    splits = {train_field: train}
    if evaluate and valid_share is not None:
        shared = train.corpora if valid_blend is train_blend else _open(valid_blend, valid_field)
        splits[valid_field] = Split(valid_blend, valid_share, shared, vocab_size)
    for field, split in splits.items():
        accepts(split, field)
    _check_tokenizers(splits, data)
    for field, split in splits.items():
        _check_token_ids(split, field)
    return train, splits.get(valid_field)


def _parse_split(split: str) -> tuple[Share | None, Share | None]:
    """The shares of training and validation in, for example, ``969,30,1``; None for no share."""
    shares = [float(share) for share in split.split(",")] if _SPLIT.fullmatch(split) else []
    if not 0 < sum(shares) < math.inf:
        raise UserError(
            f"data.split={split} must be up to three shares, train,valid,test, such as 969,30,1"
        )
    train, valid, _ = convert_split_vector_to_split_matrix(parse_and_normalize_split(split))
    return train, valid


def _open(blend: Blend, where: str) -> list[Corpus]:
    files: dict[str, int] = {}
    for number, prefix in enumerate(blend.prefixes):
        first = files.setdefault(os.path.realpath(f"{prefix}.bin"), number)
        if first != number:
            raise UserError(
                f"{where} names one corpus twice, as {blend.prefixes[first]} and as {prefix}, "
                "which would repeat each of its samples; name it once, with the sum of the weights"
            )
    return [open_corpus(prefix, where) for prefix in blend.prefixes]


def _check_tokenizers(splits: Mapping[str, Split], data: DataSection) -> None:
    """Compare what the corpora tell of their tokenizer with the run's."""
    told = [(field, c.prefix, c.sidecar) for field in splits for c in splits[field].corpora]
    if all(sidecar is None for _, _, sidecar in told):
        return
    tokenizer = load_tokenizer(data.tokenizer, data.vocab_file, data.merge_file)
    digest = tokenizer_digest(tokenizer)
    for field, prefix, made in told:
        # The digest ignores special tokens that no corpus has; the size of a vocabulary does not.
        if made is None or (made.tokenizer_digest, made.eod) == (digest, tokenizer.eod):
            continue
        sizes = made.vocab_size, made.eod
        if made.tokenizer_digest is None and sizes == (tokenizer.vocab_size, tokenizer.eod):
            continue
        raise UserError(
            f"{field}: {prefix} was made with another tokenizer, {made.tokenizer} "
            f"({made.vocab_size} entries, end of document {made.eod}, digest "
            f"{made.tokenizer_digest}), than data.tokenizer={data.tokenizer} "
            f"({tokenizer.vocab_size} entries, end of document {tokenizer.eod}, digest {digest}); "
            "name that one, or make the corpus anew"
        )


def _check_running(corpus: Corpus, where: str) -> None:
    if corpus.longest > 1:
        raise UserError(
            f"{where}: {corpus.prefix} is cut into sentences, up to {corpus.longest} in a "
            "document, which training would shuffle; make it without --split-sentences"
        )


def _check_length(split: Split, corpus: Corpus, seq_length: int, where: str) -> None:
    first, last = split.documents(corpus)
    tokens = corpus.begin(last) - corpus.begin(first)
    if tokens < seq_length + 1:
        raise UserError(
            f"{where}: {corpus.prefix} has {tokens} tokens in {last - first} documents for "
            f"this part; one sample needs train.seq_length + 1 = {seq_length + 1}"
            + split_advice(where, corpus)
        )


def split_advice(where: str, corpus: Corpus) -> str:
    """What to do about a part of ``corpus`` that is too small, for the end of a message."""
    if not where.startswith("data.split"):
        return ""
    return (
        f". data.split cuts between documents, and this corpus has {corpus.documents}: change the "
        "shares, or name a corpus in data.valid_data_path"
    )


def _check_token_ids(split: Split, where: str) -> None:
    for corpus in split.corpora:
        smallest, largest = corpus.extreme_tokens()
        if smallest < 0 or largest >= split.vocab_size:
            found = smallest if smallest < 0 else largest
            raise UserError(
                f"{where}: {corpus.prefix}.bin has the token id {found}, and the model knows 0 to "
                f"{split.vocab_size - 1}: the corpus is damaged or of another tokenizer, or "
                "model.vocab_size is too small"
            )
