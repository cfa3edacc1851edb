"""Sentence splitting with nltk's Punkt, without a download."""

from __future__ import annotations

from collections.abc import Iterable

from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTokenizer, PunktTrainer

# Punkt learns abbreviations and collocations; it has seen what it needs long before this, and its
# training is slow.
_TRAINING_CHARACTERS = 4_000_000


class SentenceSplitter:
    """Cuts a text into sentences that together are the text, to the character.

    White space goes with the sentence after it, as the tokens of GPT-2's BPE do.
    """

    def __init__(self, punkt: PunktSentenceTokenizer, source: str) -> None:
        self._punkt = punkt
        self.source = source
        """What cuts, for people."""

    def __call__(self, text: str) -> list[str]:
        """The sentences of ``text`` in order; none for an empty text."""
        ends = [end for _, end in self._punkt.span_tokenize(text)]
        ends[-1:] = [len(text)]  # white space at the end
        return [
            text[start:end] for start, end in zip([0, *ends], ends, strict=False) if start < end
        ]


def installed_splitter(language: str) -> SentenceSplitter | None:
    """Punkt's published model for ``language``, or None where it is not on this machine."""
    try:
        return SentenceSplitter(PunktTokenizer(language), f"Punkt, published for {language}")
    except LookupError:
        return None


def train_splitter(texts: Iterable[str]) -> SentenceSplitter:
    """A splitter trained, unsupervised, on the first characters of ``texts``.

    Kiss and Strunk 2006, "Unsupervised Multilingual Sentence Boundary Detection".
    """
    trainer = PunktTrainer()
    remaining = _TRAINING_CHARACTERS
    for text in texts:
        trainer.train(text[:remaining], finalize=False)
        remaining -= len(text)
        if remaining <= 0:
            break
    return SentenceSplitter(PunktSentenceTokenizer(trainer.get_params()), "Punkt, of the input")
