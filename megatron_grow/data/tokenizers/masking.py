"""What masked samples need of a tokenizer: its special tokens, and where words begin."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers

from megatron_grow.data.tokenizers.files import named_token
from megatron_grow.data.tokenizers.load import Tokenizer
from megatron_grow.inputs.errors import UserError

_NAMES = {
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
    "pad_token": ("[PAD]", "<pad>"),
}
"""What the tokens of a sample's frame are called by transformers, and in published tokenizers."""


@dataclass(frozen=True)
class MaskingTokens:
    """Token ids that masked samples are made of."""

    cls: int
    """Begins a sample."""
    sep: int
    """Ends each of its segments."""
    mask: int
    """Stands where a token is to be predicted."""
    pad: int
    """Fills a sample up."""
    ordinary: np.ndarray
    """All that are not special, ascending."""
    continues: np.ndarray | None
    """Which ones go on with a word, (vocabulary,) bool; None where tokens do not show words."""


def masking_tokens(tokenizer: Tokenizer) -> MaskingTokens:
    """The tokens of ``tokenizer`` that masked samples are made of.

    A ``tokenizer_config.json`` beside its file may name them, as those of the Hub do.

    Raises:
        UserError: it has no token of a kind that they need, or no other tokens.
    """
    parts = json.loads(tokenizer.to_json())
    vocabulary = _vocabulary(parts)
    ids = {role: _find(tokenizer, role, vocabulary) for role in _NAMES}
    special = {token["id"] for token in parts["added_tokens"] if token["special"]}
    special |= {*ids.values(), tokenizer.eod}
    if tokenizer.unknown is not None:
        special.add(tokenizer.unknown)
    ordinary = {*vocabulary.values()} - special
    if not ordinary:
        raise UserError(
            f"data.tokenizer={tokenizer.name} has special tokens alone, none of which can be masked"
        )
    return MaskingTokens(
        cls=ids["cls_token"],
        sep=ids["sep_token"],
        mask=ids["mask_token"],
        pad=ids["pad_token"],
        ordinary=np.array(sorted(ordinary), dtype=np.int64),
        continues=_continues(parts, vocabulary, tokenizer.vocab_size),
    )


def framing_tokens(tokenizer: Tokenizer) -> dict[str, tuple[str, int]]:
    """By their names in transformers, the tokens that masked samples are framed with, with ids.

    Those that ``tokenizer`` has; none if it has nothing to mask with.
    """
    vocabulary = _vocabulary(json.loads(tokenizer.to_json()))
    found = {role: _named(tokenizer, role, vocabulary) for role in _NAMES}
    if not found["mask_token"]:
        return {}
    return {role: (name, vocabulary[name]) for role, name in found.items() if name}


def _vocabulary(parts: Mapping[str, Any]) -> dict[str, int]:
    """Every token's id."""
    model = parts["model"]["vocab"]
    if isinstance(model, list):  # Unigram's, each with its score
        model = {token: number for number, (token, _) in enumerate(model)}
    return {**model, **{token["content"]: token["id"] for token in parts["added_tokens"]}}


def _find(tokenizer: Tokenizer, role: str, vocabulary: Mapping[str, int]) -> int:
    if name := _named(tokenizer, role, vocabulary):
        return vocabulary[name]
    told = named_token(Path(tokenizer.name), role)
    names = (told,) if told else _NAMES[role]
    raise UserError(
        f"data.tokenizer={tokenizer.name} has no {role}, none of {', '.join(names)}, of which "
        "masked samples are made; take a tokenizer that has it, or name its token as "
        f"{role} in a tokenizer_config.json beside it"
    )


def _named(tokenizer: Tokenizer, role: str, vocabulary: Mapping[str, int]) -> str | None:
    told = named_token(Path(tokenizer.name), role)
    return next((name for name in ((told,) if told else _NAMES[role]) if name in vocabulary), None)


def _continues(
    parts: Mapping[str, Any], vocabulary: Mapping[str, int], size: int
) -> np.ndarray | None:
    before = json.dumps([parts["normalizer"], parts["pre_tokenizer"]])
    if prefix := parts["model"].get("continuing_subword_prefix"):
        found = [number for token, number in vocabulary.items() if token.startswith(prefix)]
    elif '"ByteLevel"' in before:
        spaces = tuple(_written(space) for space in " \n\t\r")
        found = [number for token, number in vocabulary.items() if not token.startswith(spaces)]
    elif '"Metaspace"' in before:
        found = [number for token, number in vocabulary.items() if not token.startswith("▁")]
    else:
        return None
    continues = np.zeros(size, dtype=bool)
    continues[found] = True
    return continues


def _written(character: str) -> str:
    """How the vocabulary of a byte-level BPE writes a character."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return splitter.pre_tokenize_str(character)[0][0]
