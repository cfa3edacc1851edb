"""Tokenizers out of files that others wrote: everything in them is checked, nothing is trusted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from megatron_grow.inputs.errors import UserError

END_OF_DOCUMENT = "<|endoftext|>"

# Names under which published tokenizers keep their end-of-document token, tried in this order
# where no tokenizer_config.json says which one it is.
_KNOWN_END_TOKENS = (END_OF_DOCUMENT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")


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

    Raises:
        UserError: a file, or a tokenizer_config.json beside it, that is not what it should be.
    """
    where = f"tokenizer={path}"
    with library_errors(f"{where} is not a readable tokenizer.json"):
        backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
    eos = _eos_token(path.with_name("tokenizer_config.json"))
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


def _eos_token(config: Path) -> str | None:
    """The eos_token that a tokenizer_config.json names; None where it or the file is absent."""
    if not config.exists():
        return None
    try:
        content = json.loads(config.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{config} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{config}: a JSON object is expected, not {type(content).__name__}")
    eos = content.get("eos_token")
    if isinstance(eos, dict):
        eos = eos.get("content")
    if eos is not None and (not isinstance(eos, str) or not eos):
        raise UserError(
            f"{config}: eos_token={content['eos_token']!r} must be a token, or null for none"
        )
    return eos


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
