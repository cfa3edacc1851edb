"""JSON that is not one object a line, read piece by piece."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

from megatron_grow.data.preprocess.compression import DamagedError

_BLOCK = 1 << 20


def read_values(stream: BinaryIO) -> Iterator[str]:
    """The text of every value in ``stream``: one after another, or the entries of an array.

    Memory is bounded by the largest value.

    Raises:
        DamagedError: what is neither.
    """
    reader = io.TextIOWrapper(stream, encoding="utf-8-sig")
    decoder = json.JSONDecoder()
    try:
        text, position = reader.read(_BLOCK).lstrip(), 0
        array = text.startswith("[")
        gap = re.compile(r"[\s,]*" if array else r"\s*")
        if array:
            position = 1
        while True:
            match = gap.match(text, position)
            assert match is not None
            position = match.end()
            if array and text.startswith("]", position):
                return
            try:
                _, end = decoder.raw_decode(text, position)
            except json.JSONDecodeError as error:  # perhaps only cut
                more = reader.read(max(_BLOCK, len(text) - position))
                if more:
                    text, position = text[position:] + more, 0
                    continue
                if position == len(text) and not array:
                    return
                raise DamagedError(f"not JSON: {error.msg}") from error
            yield text[position:end]
            position = end
    except (ValueError, RecursionError) as error:  # not UTF-8, or beyond what Python parses
        raise DamagedError(f"not JSON: {error}") from error
