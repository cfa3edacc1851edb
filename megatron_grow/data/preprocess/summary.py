"""What preprocessing says of its input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from rich.filesize import decimal

from megatron_grow.data.preprocess.compression import SUFFIXES
from megatron_grow.data.preprocess.findings import Findings
from megatron_grow.data.preprocess.inputs import InputFile, Inputs, LeftOut

_KINDS = 12
"""In a line, at most: a tree of sources has files of dozens of kinds."""


def by_kind(files: Iterable[InputFile | LeftOut]) -> str:
    """Number and size of files, by suffix and by what they are or why they are left out; kinds of
    the fewest files are told together."""
    number: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for file in files:
        kind = f"{_suffixes(file.path)} ({file.reason})".lstrip()
        number[kind] += 1
        size[kind] += file.size
    told = sorted(kind for kind, _ in number.most_common(_KINDS))
    parts = [f"{number[kind]:,} {kind}, {decimal(size[kind])}" for kind in told]
    if others := number.keys() - {*told}:
        count, bytes_ = (sum(of[kind] for kind in others) for of in (number, size))
        parts.append(f"{count:,} of {len(others)} other kinds, {decimal(bytes_)}")
    return "; ".join(parts)


def _suffixes(path: Path) -> str:
    """The suffixes of ``path`` that tell a kind: ``.json.gz``, but not the .7 of ``part.7.gz``."""
    found = path.suffixes[-2:] if path.suffix.lower() in SUFFIXES else path.suffixes[-1:]
    return "".join(suffix.lower() for suffix in found if suffix[1:2].isalpha())


def closing_lines(inputs: Inputs, findings: Findings) -> list[str]:
    """What was read, and what of it is not in the output."""
    documents = ", ".join(f"{n:,} of {kind}" for kind, n in sorted(findings.documents.items()))
    lines = [
        f"read {findings.total:,} documents ({documents}) "
        f"in {len(inputs.files):,} files: {by_kind(inputs.files)}"
    ]
    if inputs.left_out:
        lines.append(f"left out {len(inputs.left_out):,} files: {by_kind(inputs.left_out)}")
    if findings.empty:
        lines.append(f"{findings.empty:,} documents without text")
    if findings.bad:
        lines.append(f"{findings.bad:,} bad documents left out, first:")
        lines += [f"  {place}" for place in findings.places]
    if findings.dropped.count:
        lines.append(
            f"{findings.dropped.count:,} characters left out, for which the tokenizer has no "
            f"token: the first is {findings.dropped.first}"
        )
    if findings.unknown.count:
        lines.append(
            f"{findings.unknown.count:,} unknown tokens: the first is {findings.unknown.first}"
        )
    return lines
