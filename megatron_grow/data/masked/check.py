"""What can be wrong with the data of a run on masked samples, found before any work is done."""

from __future__ import annotations

from collections.abc import Iterable

from megatron_grow.config.sections import DataSection
from megatron_grow.data.check import Split, check_corpora, split_advice
from megatron_grow.data.indexed import Corpus
from megatron_grow.data.masked.chunks import FRAME, Pairs
from megatron_grow.data.masked.options import MaskedOptions
from megatron_grow.data.tokenizers.load import load_tokenizer
from megatron_grow.data.tokenizers.masking import masking_tokens
from megatron_grow.inputs.errors import UserError


def check_data(
    data: DataSection,
    options: MaskedOptions,
    pairs: Pairs,
    *,
    seq_lengths: Iterable[int],
    vocab_size: int,
    evaluate: bool,
) -> tuple[Split, Split | None]:
    """Check that masked samples can be made; as :func:`~megatron_grow.data.check.check_corpora`.

    Args:
        data: The section of the run file.
        options: Of samples.
        pairs: What samples are for.
        seq_lengths: Tokens in a sample, in each stage.
        vocab_size: Token ids that the model knows.
        evaluate: Whether the run reads validation samples.

    Raises:
        UserError: as there; a tokenizer or a length of which masked samples cannot be made.
    """
    tokenizer = load_tokenizer(data.tokenizer, data.vocab_file, data.merge_file)
    tokens = masking_tokens(tokenizer)
    if options.masking != "token":
        if tokens.continues is None:
            raise UserError(
                f"data.options.masking={options.masking} needs to know where words begin, and the "
                f"tokens of data.tokenizer={data.tokenizer} do not show it; set masking: token"
            )
        # A model may have rows for more tokens; of those nothing tells whether they begin a word.
        vocab_size = min(vocab_size, len(tokens.continues))
    shortest = FRAME[pairs] + 2
    for seq_length in seq_lengths:
        if seq_length < shortest:
            raise UserError(
                f"train.seq_length={seq_length} leaves no room for two tokens between a sample's "
                f"{FRAME[pairs]} special ones; it must be at least {shortest}"
            )

    def accepts(split: Split, where: str) -> None:
        for corpus in split.corpora:
            _check_corpus(split, corpus, pairs, where)
            _, largest = corpus.extreme_tokens()
            if largest >= tokenizer.vocab_size and options.masking != "token":
                raise UserError(
                    f"{where}: {corpus.prefix}.bin has the token id {largest}, and "
                    f"data.tokenizer={data.tokenizer} ends at {tokenizer.vocab_size - 1}, so where "
                    "words begin is not known; name the corpus's tokenizer, or set masking: token"
                )

    return check_corpora(data, accepts, vocab_size=vocab_size, evaluate=evaluate)


def _check_corpus(split: Split, corpus: Corpus, pairs: Pairs, where: str) -> None:
    if not corpus.has_sentences:
        raise UserError(
            f"{where}: {corpus.prefix} is not cut into sentences, of which masked samples are "
            "made; make it with --split-sentences"
        )
    if corpus.sidecar and corpus.sidecar.append_eod:
        raise UserError(
            f"{where}: the documents of {corpus.prefix} end in an end-of-document token, which "
            "masked samples add themselves; make it without --append-eod"
        )
    first, last = split.documents(corpus)
    least = 2 if pairs == "next_sentence" else 1
    if last - first < least:
        raise UserError(
            f"{where}: {corpus.prefix} has {last - first} documents for this part; samples need "
            f"{least}" + split_advice(where, corpus)
        )
