"""Checksums of pieces, against zlib's of the whole."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from megatron_grow.checkpoint.legacy.checksums import combine


@given(st.lists(st.binary(max_size=300), max_size=6))
def test_pieces_make_the_checksum_of_the_whole(pieces: list[bytes]) -> None:
    known = [(zlib.crc32(piece), len(piece)) for piece in pieces]
    assert combine(known) == zlib.crc32(b"".join(pieces))


def test_long_pieces() -> None:
    zeros, end = bytes(5 << 20), b"end"
    checksum = zlib.crc32(zeros)
    expected, repeats = 0, 3
    for _ in range(repeats):
        expected = zlib.crc32(zeros, expected)
    pieces = [(checksum, len(zeros))] * repeats
    assert combine([*pieces, (zlib.crc32(end), 3)]) == zlib.crc32(end, expected)
