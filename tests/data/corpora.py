"""Text and corpora for the data tests."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from megatron_grow.data.indexed import Sidecar
from megatron_grow.data.preprocess import PreprocessConfig, preprocess
from megatron_grow.data.writer import CorpusWriter


def stdlib_files(count: int) -> list[Path]:
    """Sources of the standard library: text that any machine has."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    assert len(files) > count
    return files[:count]


def stdlib_texts(count: int) -> list[str]:
    return [file.read_text(encoding="utf-8") for file in stdlib_files(count)]


def write_json_lines(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def run(**fields: object) -> dict[str, str]:
    """Preprocess with the given fields of PreprocessConfig; the output prefixes."""
    fields = {name: str(v) if isinstance(v, Path) else v for name, v in fields.items()}
    fields["input"] = [str(path) for path in fields["input"]]
    return preprocess(PreprocessConfig(**fields), Console(quiet=True))


def write_corpus(
    prefix: Path, lengths: Sequence[int], *, first_token: int = 0, sidecar: bool = True
) -> str:
    """A corpus whose tokens count up from ``first_token``: a token says where it stands."""
    vocab_size = first_token + sum(lengths)
    writer = CorpusWriter(prefix, vocab_size)
    token = first_token
    for length in lengths:
        writer.add(np.arange(token, token + length), [length])
        token += length
    writer.finish(Sidecar("counting", vocab_size, vocab_size, False, len(lengths), sum(lengths)))
    if not sidecar:
        Path(f"{prefix}.json").unlink()
    return str(prefix)
