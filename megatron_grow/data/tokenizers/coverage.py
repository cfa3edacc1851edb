"""What of a text a tokenizer cannot represent."""

from __future__ import annotations

from collections import Counter

import tokenizers
from tokenizers import models, pre_tokenizers


class Coverage:
    """Which characters a tokenizer drops, having no token for them.

    A BPE without an unknown token drops in silence what is not in its alphabet. The other models
    have an unknown token or fail.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._vocabulary = backend.get_vocab()
        self._dropped: dict[str, bool] = {}
        model = backend.model
        self.has_all_bytes = isinstance(model, models.BPE) and self._has_all_bytes(model)
        """Any text is made of tokens of its own."""
        self._drops = False
        if isinstance(model, models.BPE) and not self.has_all_bytes and model.unk_token is None:
            self._drops = True
            self._prefixes = {"", model.continuing_subword_prefix or ""}
            self._suffixes = {"", model.end_of_word_suffix or ""}

    def _has_all_bytes(self, model: models.BPE) -> bool:
        fallback = (f"<0x{byte:02X}>" for byte in range(256))
        if model.byte_fallback and all(token in self._vocabulary for token in fallback):
            return True
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        before = repr((self._backend.normalizer, self._backend.pre_tokenizer))
        return "ByteLevel" in before and all(char in self._vocabulary for char in alphabet)

    def dropped(self, text: str) -> Counter[str]:
        """The characters of ``text`` that get no token, in order, and how often each occurs."""
        if not self._drops:
            return Counter()
        characters = set(text)
        for character in characters.difference(self._dropped):
            self._dropped[character] = self._is_dropped(character)
        dropped = sorted((c for c in characters if self._dropped[c]), key=text.index)
        return Counter({character: text.count(character) for character in dropped})

    def _is_dropped(self, character: str) -> bool:
        normalizer, splitter = self._backend.normalizer, self._backend.pre_tokenizer
        text = normalizer.normalize_str(character) if normalizer else character
        # What these two remove (white space, say) is not text to the tokenizer.
        pieces = [piece for piece, _ in splitter.pre_tokenize_str(text)] if splitter else [text]
        return not all(self._has_symbol(symbol) for piece in pieces for symbol in piece)

    def _has_symbol(self, symbol: str) -> bool:
        return any(
            prefix + symbol + suffix in self._vocabulary
            for prefix in self._prefixes
            for suffix in self._suffixes
        )
