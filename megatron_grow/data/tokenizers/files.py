"""Tokenizers out of files that others wrote: everything in them is checked, nothing is trusted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from megatron_grow.inputs.errors import UserError

END_OF_DOCUMENT = "<|endoftext|>"
PADDING, UNKNOWN, CLASSIFIER, SEPARATOR, MASK = SPECIAL = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
)
"""Those of BERT."""

# Names under which published tokenizers keep their end-of-document token, tried in this order
# where no tokenizer_config.json says which one it is.
_KNOWN_END_TOKENS = (END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
SETTINGS = "tokenizer_config.json"
"""What the Hub keeps beside a tokenizer."""


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turn what the tokenizers library raises into one line that begins with ``what``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # bare Exception, or a panic, which is not even that
        raise UserError(f"{what}: {' '.join(str(error).split())}") from error


def read_tokenizer_json(path: Path) -> tuple[tokenizers.Tokenizer, str]:
    """A Hugging Face tokenizer.json, and how its end-of-document token is written.

    Where none of the usual ones is there, what separates the segments of a BERT ends a document.

    Raises:
        UserError: a file, or a tokenizer_config.json beside it, that is not what it should be.
    """
    where = f"tokenizer={path}"
    with library_errors(f"{where} is not a readable tokenizer.json"):
        backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
    eos = named_token(path, "eos_token")
    candidates = (eos,) if eos else _KNOWN_END_TOKENS
    end = next((token for token in candidates if backend.token_to_id(token) is not None), None)
    if end is None and eos:
        raise UserError(f"{where} has no token {eos!r}, the eos_token of its tokenizer_config.json")
    if end is None:
        raise UserError(
            f"{where} has no end-of-document token: none of {', '.join(candidates)}; "
            "name it as eos_token in a tokenizer_config.json beside it"
        )
    _check_ids(where, backend, end)
    return backend, end


def named_token(path: Path, role: str) -> str | None:
    """The token that a tokenizer_config.json beside ``path`` names as ``role``.

    Args:
        path: of a tokenizer.
        role: as in that file: ``eos_token``, say.

    Returns:
        None where the file or the role is absent.

    Raises:
        UserError: the file is not what it should be.
    """
    config = path.with_name(SETTINGS)
    content = _read_settings(config)
    token = content.get(role)
    if isinstance(token, dict):
        token = token.get("content")
    if token is not None and (not isinstance(token, str) or not token):
        raise UserError(f"{config}: {role}={content[role]!r} must be a token, or null for none")
    return token


def _read_settings(config: Path) -> dict[str, Any]:
    """What a tokenizer_config.json says; nothing where there is none."""
    if not config.exists():
        return {}
    try:
        content = json.loads(config.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{config} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{config}: a JSON object is expected, not {type(content).__name__}")
    return content


def _treatment(config: Path) -> dict[str, bool]:
    """How a tokenizer_config.json says that a BERT's text is treated, as far as it does."""
    names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
    content = _read_settings(config)
    said = {name: content[name] for name in names if content.get(name) is not None}
    for name, value in said.items():
        if not isinstance(value, bool):
            raise UserError(f"{config}: {name}={value!r} must be true or false")
    return said


def read_vocabulary(path: Path) -> tuple[tokenizers.Tokenizer, str]:
    """The WordPiece tokenizer of a vocab.txt, a token a line, and its end-of-document token.

    It treats text as transformers' ``BertTokenizer`` does. A tokenizer_config.json beside the file
    says how (``do_lower_case``, ``strip_accents``, ``tokenize_chinese_chars``); without one, text
    is lower-cased unless the vocabulary has tokens that are not.

    Raises:
        UserError: a file that is not what it should be.
    """
    where = f"tokenizer={path}"
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{where} is not a readable vocabulary: {error}") from error
    tokens = [line.removesuffix("\r") for line in lines]
    while tokens and not tokens[-1]:
        tokens.pop()
    for special in (UNKNOWN, SEPARATOR):
        if special not in tokens:
            raise UserError(
                f"{where} has no token {special}: it is no WordPiece vocabulary, which has a token "
                "on each line"
            )
    vocabulary = {token: number for number, token in enumerate(tokens)}
    said = _treatment(path.with_name(SETTINGS))
    words = vocabulary.keys() - set(SPECIAL)
    backend = word_piece(
        models.WordPiece(vocab=vocabulary, unk_token=UNKNOWN),
        lower_case=said.get("do_lower_case", all(word == word.lower() for word in words)),
        strip_accents=said.get("strip_accents"),
        chinese=said.get("tokenize_chinese_chars", True),
    )
    _check_ids(where, backend, SEPARATOR)
    return backend, SEPARATOR


def word_piece(
    model: models.WordPiece,
    *,
    lower_case: bool,
    strip_accents: bool | None = None,
    chinese: bool = True,
) -> tokenizers.Tokenizer:
    """BERT's treatment of text around a vocabulary of word pieces.

    Args:
        model: the vocabulary, with :data:`SPECIAL` tokens as far as it has them.
        lower_case: put text in lower case.
        strip_accents: leave accents out; absent: if it is lower-cased.
        chinese: every Chinese character is a word.
    """
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(
        handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lower_case
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    frame(backend)
    return backend


def frame(backend: tokenizers.Tokenizer) -> None:
    """Mark BERT's special tokens as such, and put those around texts that ask for them."""
    has = [token for token in SPECIAL if backend.token_to_id(token) is not None]
    backend.add_special_tokens(has)
    if CLASSIFIER in has and SEPARATOR in has:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{CLASSIFIER} $A {SEPARATOR}",
            pair=f"{CLASSIFIER} $A {SEPARATOR} $B:1 {SEPARATOR}:1",
            special_tokens=[
                (token, backend.token_to_id(token)) for token in (CLASSIFIER, SEPARATOR)
            ],
        )


def read_gpt2(vocab_file: str | None, merge_file: str | None) -> tuple[tokenizers.Tokenizer, str]:
    """The tokenizer in GPT-2's vocab.json and merges.txt, and its end-of-document token.

    Raises:
        UserError: a file that is missing or not what it should be.
    """
    if vocab_file is None or merge_file is None:
        raise UserError(
            f"tokenizer=gpt2 needs vocab_file={vocab_file} and merge_file={merge_file} to name "
            "GPT-2's vocab.json and merges.txt"
        )
    for name, file in (("vocab_file", vocab_file), ("merge_file", merge_file)):
        if not Path(file).is_file():
            raise UserError(f"{name}={file} does not exist")
    with library_errors(f"vocab_file={vocab_file} and merge_file={merge_file} do not make a BPE"):
        model = models.BPE.from_file(vocab_file, merge_file)
    backend = byte_level(model)
    if backend.token_to_id(END_OF_DOCUMENT) is None:
        raise UserError(f"vocab_file={vocab_file} has no token {END_OF_DOCUMENT}")
    _check_ids(f"vocab_file={vocab_file}", backend, END_OF_DOCUMENT)
    return backend, END_OF_DOCUMENT


def byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    """GPT-2's treatment of text around a BPE: any bytes in, the same bytes out."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _check_ids(where: str, backend: tokenizers.Tokenizer, end: str) -> None:
    vocabulary = backend.get_vocab(with_added_tokens=True)
    largest = max(vocabulary, key=vocabulary.__getitem__)
    if vocabulary[largest] >= np.iinfo(np.int32).max:
        raise UserError(f"{where}: token {largest!r} has id {vocabulary[largest]}, beyond int32")
    sharing = [token for token, number in vocabulary.items() if number == vocabulary[end]]
    if len(sharing) > 1:
        raise UserError(
            f"{where}: tokens {sharing} share id {vocabulary[end]}, which must be the "
            "end-of-document token's alone"
        )
