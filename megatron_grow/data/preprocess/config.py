"""What ``tools/preprocess_data.py`` is asked to make."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_grow import __version__
from megatron_grow.data.tokenizers.load import load_tokenizer, tokenizer_digest
from megatron_grow.inputs.errors import UserError

_SUFFIXES = (".bin", ".idx", ".json")
_MOST_WORKERS = 1024


@dataclass(frozen=True)
class PreprocessConfig:
    """What to read, how to encode it and where to write it."""

    input: list[str]
    """Files of JSON, text or Parquet, compressed or not, and directories of such files."""
    output_prefix: str
    """Writes PREFIX_text_document.{bin,idx,json}: the JSON key and what a sequence is."""
    json_key: str = "text"
    """Key of the text in a JSON object, its column in Parquet."""
    glob: Sequence[str] = ("*",)
    """Names of files taken from a directory."""
    exclude: Sequence[str] = ()
    """Names of files and folders left out of a directory."""
    on_bad_line: str = "stop"
    """What a document does that cannot be read or encoded: ``stop`` the run, or be left out and
    counted: ``skip``."""
    tokenizer: str = "bytes"
    """``bytes``, ``gpt2`` or the path of a tokenizer.json or vocab.txt."""
    vocab_file: str | None = None
    merge_file: str | None = None
    train_tokenizer: int | None = None
    """Train a tokenizer of this many tokens on the input, write it as PREFIX-tokenizer.json, use
    it."""
    tokenizer_model: str = "bpe"
    """What is trained: a byte-level ``bpe``, or a ``wordpiece`` vocabulary."""
    cased: bool = False
    """Train a WordPiece vocabulary of text as it is, not in lower case."""
    append_eod: bool = False
    """End every document with the end-of-document token."""
    split_sentences: bool = False
    """Make every sentence a sequence, and the output PREFIX_text_sentence."""
    language: str = "english"
    """Whose Punkt model to look for."""
    valid_fraction: float = 0.0
    """Share of documents, evenly spaced, written to PREFIX_valid_text_document instead."""
    workers: int = 1
    """Processes that encode; the output does not depend on it."""
    overwrite: bool = False
    """Replace an existing output."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.valid_fraction < 1.0:
            raise UserError(f"valid_fraction={self.valid_fraction} must be in [0, 1)")
        if not 1 <= self.workers <= _MOST_WORKERS:
            raise UserError(f"workers={self.workers} must be from 1 to {_MOST_WORKERS}")
        if self.on_bad_line not in ("stop", "skip"):
            raise UserError(f"on_bad_line={self.on_bad_line} must be stop or skip")
        if self.tokenizer_model not in ("bpe", "wordpiece"):
            raise UserError(f"tokenizer_model={self.tokenizer_model} must be bpe or wordpiece")
        trains_words = self.train_tokenizer is not None and self.tokenizer_model == "wordpiece"
        if self.tokenizer_model == "wordpiece" and not trains_words:
            raise UserError(
                "tokenizer_model=wordpiece is of a tokenizer that is trained; give "
                "--train-tokenizer N as well"
            )
        if self.cased and not trains_words:
            raise UserError(
                "cased=True is of a WordPiece vocabulary that is trained; give --train-tokenizer N "
                "--tokenizer-model wordpiece as well"
            )
        if os.path.basename(self.output_prefix) in ("", ".", ".."):
            raise UserError(
                f"output_prefix={self.output_prefix} must end in the beginning of a file name, "
                f"such as {os.path.join(self.output_prefix, 'corpus')}"
            )

    @property
    def prefixes(self) -> dict[str, str]:
        """Output prefix of each split: ``train`` and, if documents are held out, ``valid``."""
        level = "sentence" if self.split_sentences else "document"
        infixes = {"train": "", "valid": "_valid"} if self.valid_fraction else {"train": ""}
        key = self.json_key.replace("/", "_")
        return {
            split: f"{self.output_prefix}{infix}_{key}_{level}" for split, infix in infixes.items()
        }

    @property
    def outputs(self) -> list[Path]:
        """Every file that is written."""
        outputs = [Path(prefix + end) for prefix in self.prefixes.values() for end in _SUFFIXES]
        return outputs if self.train_tokenizer is None else [*outputs, Path(self.tokenizer_path)]

    @property
    def staging(self) -> Path:
        """Where they are written until they are whole."""
        return Path(f"{self.prefixes['train']}.partial")

    @property
    def kept(self) -> str:
        """What an interrupted run leaves, in words."""
        return f"what was done is kept in {self.staging}: the same command goes on from there"

    @property
    def skips_bad(self) -> bool:
        """Whether bad documents are left out."""
        return self.on_bad_line == "skip"

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer as a run file names it."""
        return self.tokenizer if self.train_tokenizer is None else self.tokenizer_path

    @property
    def tokenizer_path(self) -> str:
        """Where a trained tokenizer is written."""
        return f"{self.output_prefix}-tokenizer.json"

    def settings(self) -> dict[str, Any]:
        """What the output depends on, besides the input; loads the tokenizer."""
        digest = None
        if self.train_tokenizer is None:
            loaded = load_tokenizer(self.tokenizer, self.vocab_file, self.merge_file)
            digest = tokenizer_digest(loaded)
        return {
            "version": __version__,
            "tokenizer_digest": digest,
            "train_tokenizer": self._trained,
            "json_key": self.json_key,
            "append_eod": self.append_eod,
            "split_sentences": self.split_sentences and self._punkt,
            "valid_fraction": self.valid_fraction,
        }

    @property
    def _punkt(self) -> str:
        """Which one cuts: the language, and of a model that is installed, that it is."""
        from megatron_grow.data.preprocess.sentences import installed_splitter  # imports nltk

        found = installed_splitter(self.language)
        return self.language if found is None else f"{self.language}, {found.source}"

    @property
    def _trained(self) -> int | str | None:
        """Which tokenizer is trained."""
        if self.train_tokenizer is None or self.tokenizer_model == "bpe":
            return self.train_tokenizer
        return f"{'cased' if self.cased else 'uncased'} wordpiece {self.train_tokenizer}"

    def split(self, document: int) -> str:
        """Which split document number ``document`` (from 0, empty ones counted) belongs to."""
        share = self.valid_fraction
        held_out = math.floor((document + 1) * share + 0.5) - math.floor(document * share + 0.5)
        return "valid" if held_out else "train"
