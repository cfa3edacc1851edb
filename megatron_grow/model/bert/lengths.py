"""How long the sequences between layers are; light to import."""

from __future__ import annotations


def pooled_length(seq_length: int, masked: int, pool_size: int, multiple: int = 1) -> int:
    """Places that hold any sample.

    A sample with fewer masked tokens than ``masked``, or with padding, needs no more of them.

    Args:
        seq_length: tokens of a sample, padding among them.
        masked: the most masked tokens that a sample has.
        pool_size: tokens that share a place.
        multiple: of what the length must be one; places behind the last are padding.
    """
    kept = min(1 + masked, seq_length)
    places = kept + -(-(seq_length - kept) // pool_size)
    return -(-places // multiple) * multiple
