"""Write what a source holds into a writer, block by block, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from megatron_grow.checkpoint.manifest import TensorDigest, digest, digest_of
from megatron_grow.checkpoint.reader import Reader, as_promised, not_finite
from megatron_grow.checkpoint.writer import Block, Writer
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.boxes import full, split, volume
from megatron_grow.state.finite import is_finite
from megatron_grow.state.kinds import describe
from megatron_grow.state.memory import cast

ELEMENTS_PER_BLOCK = 1 << 25
"""What is made, digested and written at a time: 128 MiB in fp32."""

_TASK_BYTES = 512 << 20
"""What one thread writes before it takes the next task, at least."""

Result = TypeVar("Result")
Advance = Callable[[int], None]
"""Is told how many bytes have been dealt with."""


@dataclass(frozen=True)
class Written:
    """What is known of a task after it was done."""

    table: Any
    """Of the writer."""
    digests: list[tuple[str, bytes]]
    """Stored name and digest of each block, in order."""


def tasks(source: Reader, writer: Writer) -> list[list[Block]]:
    """All that is to be written, layer after layer, in tasks that do not depend on who writes."""
    blocks = [
        Block(key, kind, box)
        for key, tensor in source.tensors.items()
        for box in split(full(tensor.shape), ELEMENTS_PER_BLOCK)
        for kind in source.kinds(key)
        if writer.stored(key, kind)
    ]
    blocks.sort(key=lambda b: b.box[0][0] if source.tensors[b.key].stacked else -1)
    found: list[list[Block]] = [[]]
    held = 0
    for block in blocks:
        if held >= _TASK_BYTES:
            found.append([])
            held = 0
        found[-1].append(block)
        held += stored_bytes(block, writer)
    return found


def stored_bytes(block: Block, writer: Writer) -> int:
    """Bytes of a block's values, under all its names."""
    sizes = (dtype.itemsize for dtype in writer.stored(block.key, block.kind).values())
    return volume(block.box) * sum(sizes)


def write(
    source: Reader,
    writer: Writer,
    work: dict[int, list[Block]],
    *,
    finite: bool,
    threads: int,
    advance: Advance,
) -> dict[int, Written]:
    """Read, make and write some tasks; for several at a time, so that these overlap.

    Args:
        source: what is read.
        writer: what is written, prepared.
        work: the tasks of this process, by number.
        finite: whether to refuse values that are NaN or infinite.
        threads: tasks in the making at a time.
        advance: is told the bytes of each block.

    Raises:
        UserError: the source is damaged, or not finite.
        OSError: the disk is full, or fails.
    """

    def one(number: int, blocks: list[Block]) -> Written:
        digests: list[tuple[str, bytes]] = []

        def made() -> Iterator[tuple[Block, dict[str, torch.Tensor]]]:
            for block in blocks:
                values = as_promised(
                    source.read(block.key, block.kind, block.box),
                    source.path,
                    describe(block.key, block.kind),
                    block.box,
                    source.dtype(block.key, block.kind),
                )
                stored = {
                    name: cast(values, dtype)
                    for name, dtype in writer.stored(block.key, block.kind).items()
                }
                if finite:
                    _check_finite(source, block, values, stored)
                digests.extend((name, digest(data)) for name, data in stored.items())
                yield block, stored
                advance(sum(data.nbytes for data in stored.values()))

        return Written(writer.write(number, made()), digests)

    return _each(one, work, threads)


def check(
    writer: Writer,
    work: dict[int, list[Block]],
    written: dict[int, Written],
    *,
    threads: int,
    advance: Advance,
) -> None:
    """Read what was written, as its readers will, and compare it with what the maps made.

    Raises:
        UserError: it is not the same.
    """
    read_back = writer.reopen().read_stored

    def one(number: int, blocks: list[Block]) -> None:
        expected = iter(written[number].digests)
        for block in blocks:
            for name, dtype in writer.stored(block.key, block.kind).items():
                values = read_back(name, block.key, block.box)
                as_promised(values, writer.directory, name, block.box, dtype)
                if (name, digest(values)) != next(expected):
                    raise UserError(
                        f"{writer.directory}: {name} is not what was written to it; the disk "
                        "or the memory is faulty"
                    )
                advance(values.nbytes)

    _each(one, work, threads)


def tensor_digests(
    source: Reader, writer: Writer, written: Iterable[Written]
) -> dict[str, TensorDigest]:
    """The digest of each stored tensor, from all tasks in order."""
    blocks: dict[str, list[bytes]] = {}
    for task in written:
        for name, found in task.digests:
            blocks.setdefault(name, []).append(found)
    return {
        name: TensorDigest(
            tensor.checkpoint_shape, str(dtype).removeprefix("torch."), digest_of(blocks[name])
        )
        for key, tensor in source.tensors.items()
        for kind in source.kinds(key)
        for name, dtype in writer.stored(key, kind).items()
    }


def _check_finite(
    source: Reader, block: Block, values: torch.Tensor, stored: dict[str, torch.Tensor]
) -> None:
    for data in stored.values():
        if is_finite(data):
            continue
        if not is_finite(values):
            raise not_finite(source, block.key, block.kind)
        larger = "bf16" if data.dtype == torch.float16 else "fp32"
        raise UserError(
            f"{source.path}: {describe(block.key, block.kind)} has values that {data.dtype} cannot "
            f"hold; use --precision {larger}"
        )


def _each(
    action: Callable[[int, list[Block]], Result], work: dict[int, list[Block]], threads: int
) -> dict[int, Result]:
    """``action`` of every task, several at a time; the first error stops those not begun."""
    with ThreadPoolExecutor(threads) as pool:
        futures = {number: pool.submit(action, number, blocks) for number, blocks in work.items()}
        try:
            return {number: future.result() for number, future in futures.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
