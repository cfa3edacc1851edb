"""One conversion, from an open source to a checkpoint that is whole or not there."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from megatron_grow.checkpoint import copy
from megatron_grow.checkpoint.layout import SIDE_FILES, TRACKER
from megatron_grow.checkpoint.manifest import write_manifest
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.staging import partial, publish
from megatron_grow.checkpoint.writer import Writer
from megatron_grow.convert.progress import Progress
from megatron_grow.files.durable import sync
from megatron_grow.files.lock import locked
from megatron_grow.inputs.errors import UserError
from megatron_grow.parallel.agreement import gather, leads, place, together

Result = TypeVar("Result")


@dataclass(frozen=True)
class Outcome:
    """What a conversion did, on this process."""

    stored_bytes: int
    """Of tensors, over all processes."""
    seconds: float
    """Until all was written and on disk."""
    check_seconds: float
    """Of reading it again; 0 if it was not."""


def convert(
    source: Reader,
    final: Path,
    make_writer: Callable[[Path], Writer],
    *,
    step: int | None,
    side_files: Mapping[str, bytes] | None = None,
    finite: bool = True,
    threads: int,
    verifies: bool,
    progress: Progress,
) -> Outcome:
    """Write ``source`` into a directory that appears when it is complete.

    Every process of a job takes part; each makes and writes its share of the tasks. Whatever goes
    wrong, nothing stands under the final name.

    Args:
        source: what is written.
        final: where; nothing may be there.
        make_writer: opens a writer in the directory where it is written first.
        step: what the tracker file beside ``final`` will say; None: there is none.
        side_files: by name, are kept in a directory of their own beside the tensors.
        finite: whether to refuse values that are NaN or infinite.
        threads: tasks in the making at a time.
        verifies: whether to read all again and compare.
        progress: is told.

    Raises:
        UserError: the source is damaged or not finite, or the destination cannot take it.
    """
    began = time.perf_counter()
    writer = together(lambda: make_writer(partial(final)))
    tasks = copy.tasks(source, writer)
    total = sum(copy.stored_bytes(block, writer) for task in tasks for block in task)
    rank, ranks = place()
    work = {number: tasks[number] for number in range(rank, len(tasks), ranks)}
    mine = sum(copy.stored_bytes(block, writer) for task in work.values() for block in task)
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)  # the parallelism is over tasks
        together(lambda: stack.enter_context(_staged(final, total)) if leads() else None)
        together(lambda: _io(writer.prepare) if leads() else None)
        with progress.task("writing", mine) as advance:
            written = together(
                lambda: _io(
                    lambda: copy.write(
                        source, writer, work, finite=finite, threads=threads, advance=advance
                    )
                )
            )
        by_number = {number: done for share in gather(written) for number, done in share.items()}
        ordered = [by_number[number] for number in range(len(tasks))]
        tables = [task.table for task in ordered]
        together(lambda: _io(lambda: writer.finish(tables)) if leads() else None)
        seconds = time.perf_counter() - began
        if verifies:
            with progress.task("verifying", mine) as advance:
                together(
                    lambda: copy.check(writer, work, written, threads=threads, advance=advance)
                )
        check_seconds = time.perf_counter() - began - seconds

        def finish() -> None:
            digests = copy.tensor_digests(source, writer, ordered)
            _keep(side_files or {}, partial(final) / SIDE_FILES)
            write_manifest(
                partial(final), writer.companions, digests, copy.ELEMENTS_PER_BLOCK, writer.shards
            )
            if final.exists():
                final.rmdir()  # empty, as it was found
            publish(partial(final), final, step)

        together(lambda: _io(finish) if leads() else None)
    return Outcome(total, seconds, check_seconds if verifies else 0.0)


def check_destination(root: Path, final: Path, source: Path) -> None:
    """Raise :class:`UserError` if something is where a checkpoint is to be written."""
    if final.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{final} would lie in {source}, which is read; name another destination")
    if os.path.ismount(final):
        raise UserError(f"{final} is a mount point, and is not replaced; name a directory in it")
    if os.path.lexists(final) and not _is_empty(final):
        raise UserError(f"{final} exists; name another destination, or remove it")
    if root != final and (root / TRACKER).exists():
        raise UserError(f"{root} holds checkpoints of another run; name another destination")
    parent = next(path for path in [final, *final.parents] if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{final} cannot be made: {parent} is not a directory to write to")


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def _keep(side_files: Mapping[str, bytes], directory: Path) -> None:
    for name, content in side_files.items():
        directory.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)
    if directory.exists():
        sync(*directory.iterdir(), directory)


@contextlib.contextmanager
def _staged(final: Path, total: int) -> Iterator[None]:
    """The directory in which ``final`` is written, empty; gone in the end, whatever happens."""
    written = partial(final)
    made = [path for path in final.parents if not path.exists()]
    free = shutil.disk_usage(next(path for path in final.parents if path.exists())).free
    if free < total:
        raise UserError(
            f"{final.parent} has {free / 1e9:.1f} GB free; the checkpoint needs {total / 1e9:.1f}"
        )
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        with locked(written.with_suffix(".lock"), f"another conversion is writing {final}"):
            try:
                written.mkdir(exist_ok=True)
                for left_over in written.iterdir():
                    shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
                yield
            finally:
                shutil.rmtree(written, ignore_errors=True)  # gone already if all went well
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _io(action: Callable[[], Result]) -> Result:
    """``action``, whose failing disk is told in one line."""
    try:
        return action()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise UserError(f"cannot write: {where}{error.strerror or error}") from None
