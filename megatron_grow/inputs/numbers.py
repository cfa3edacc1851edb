"""Sets of numbers as people write them: ``0-3, 8``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from megatron_grow.inputs.errors import UserError

_SPAN = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", re.ASCII)


def numbers(text: str, count: int, where: str) -> list[int]:
    """The numbers from 0 to ``count`` - 1 that ``text`` names: ``all``, or ``0,16-19``.

    Raises:
        UserError: another text, or a number that is not among them; its message begins with
            ``where``.
    """
    if text == "all":
        return list(range(count))
    found: set[int] = set()
    for part in text.split(","):
        span = _SPAN.fullmatch(part)
        if span is None:
            raise UserError(f"{where}={text} must be all, or numbers such as 0,16-19")
        first, last = int(span[1]), int(span[2] or span[1])
        if not first <= last < count:
            raise UserError(f"{where}={text}: {part.strip()} is not from 0 to {count - 1}")
        found.update(range(first, last + 1))
    return sorted(found)


def spans(values: Iterable[int]) -> str:
    """Numbers in short, as :func:`numbers` reads them."""
    runs: list[list[int]] = []
    for value in sorted(set(values)):
        if runs and runs[-1][1] == value - 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in runs)
