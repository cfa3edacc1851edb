"""What a conversion would do, told without doing it."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_grow.checkpoint import copy
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.writer import Writer
from megatron_grow.state.boxes import full, volume

_GB_PER_SECOND = 0.5
"""Of the disk, where an estimate needs one."""
_BASE = 0.6e9
"""Resident bytes of the process itself."""


def preview(source: Reader, writer: Writer, *, threads: int, verifies: bool) -> Iterator[str]:
    """A line for each tensor, and the totals.

    Args:
        source: what would be written.
        writer: where; nothing is written.
        threads: tasks in the making at a time.
        verifies: whether all would be read again.
    """
    read = stored = 0
    largest = 0.0
    for key, tensor in source.tensors.items():
        for kind in source.kinds(key):
            names = writer.stored(key, kind)
            if not names:
                yield f"  {key} ({kind}): left out"
                continue
            shape = " x ".join(map(str, tensor.checkpoint_shape))
            elements = volume(full(tensor.shape))
            out = elements * sum(dtype.itemsize for dtype in names.values())
            origin, needed = source.origin(key, kind)
            read, stored = read + needed, stored + out
            block = min(elements, copy.ELEMENTS_PER_BLOCK)
            largest = max(largest, block * (8.0 + sum(d.itemsize for d in names.values())))
            yield (
                f"  {', '.join(names)}: {shape} {'/'.join(str(d)[6:] for d in names.values())} "
                f"<- {origin}; reads {needed:,} bytes, writes {out:,}"
            )
    moved = read + stored * (2 if verifies else 1)
    yield (
        f"reads {read / 1e9:.2f} GB, writes {stored / 1e9:.2f} GB in "
        f"{len(copy.tasks(source, writer))} files or parts"
        + (", reads them again to verify" if verifies else "")
    )
    yield f"peak memory about {(_BASE + threads * largest) / 1e9:.1f} GB with {threads} threads"
    yield f"about {moved / _GB_PER_SECOND / 1e9:.0f} s on a disk of {_GB_PER_SECOND} GB/s"
