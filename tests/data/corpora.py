"""Text and corpora for the data tests."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from rich.console import Console

from megatron_grow.data.preprocess.config import PreprocessConfig
from megatron_grow.data.preprocess.run import preprocess
from megatron_grow.data.tokenizers.load import ByteTokenizer, tokenizer_digest


def stdlib_files(count: int) -> list[Path]:
    """Sources of the standard library: text that any machine has."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    assert len(files) > count
    return files[:count]


def stdlib_texts(count: int) -> list[str]:
    return [file.read_text(encoding="utf-8") for file in stdlib_files(count)]


def write_json_lines(path: Path, texts: Sequence[str]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def run(console: Console | None = None, **fields: object) -> dict[str, str]:
    """Preprocess with the given fields of PreprocessConfig; the output prefixes."""
    fields = {name: str(v) if isinstance(v, Path) else v for name, v in fields.items()}
    fields["input"] = [str(path) for path in fields["input"]]
    return preprocess(PreprocessConfig(**fields), console or Console(quiet=True))


def write_ids(
    prefix: Path,
    ids: np.ndarray,
    lengths: Sequence[int],
    documents: Sequence[int] | None = None,
    dtype: type[np.number] = np.uint16,
) -> str:
    """Token ids in sequences of ``lengths``, and documents of so many sequences (else of one).

    Like those of Megatron-LM's own tool, the corpus has no sidecar.
    """
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    begin = sequence = 0
    for count in documents or [1] * len(lengths):
        sizes = lengths[sequence : sequence + count]
        builder.add_document(ids[begin : begin + sum(sizes)].astype(np.int64), sizes)
        begin, sequence = begin + sum(sizes), sequence + count
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def assert_same(one: dict[str, str], other: dict[str, str]) -> None:
    """Two outputs of preprocessing are equal to the bit."""
    assert one.keys() == other.keys()
    for part in one:
        for suffix in (".bin", ".idx", ".json"):
            assert Path(one[part] + suffix).read_bytes() == Path(other[part] + suffix).read_bytes()


def write_corpus(prefix: Path, lengths: Sequence[int], *, first_token: int = 0) -> str:
    """A corpus whose tokens count up from ``first_token``: a token says where it stands."""
    tokens = np.arange(first_token, first_token + sum(lengths))
    return write_ids(prefix, tokens, lengths)


def describe(prefix: str, **fields: object) -> None:
    """Write the sidecar of a corpus of 1,000 bytes in 100 documents, with changed ``fields``."""
    values = {
        "tokenizer": "bytes",
        "vocab_size": 257,
        "eod": 256,
        "append_eod": False,
        "documents": 100,
        "tokens": 1000,
        "tokenizer_digest": tokenizer_digest(ByteTokenizer()),
    }
    Path(f"{prefix}.json").write_text(json.dumps(values | fields))
