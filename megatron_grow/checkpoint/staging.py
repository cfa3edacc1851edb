"""Directories that appear whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from megatron_grow.checkpoint.layout import PENDING, TRACKER, replaced, step_dir
from megatron_grow.checkpoint.root import is_complete, saved_steps
from megatron_grow.files.durable import sync


def partial(final: Path, attempt: str = "") -> Path:
    """Where ``final`` is written until it is complete; ``attempt`` tells one try from another."""
    return final.with_name(f".{final.name}{attempt and f'.{attempt}'}.partial")


def publish(written: Path, final: Path, step: int | None = None) -> None:
    """Give a directory its final name, and make the tracker file beside it say ``step``.

    An older directory of that name stays whole until the new one can take over.

    Args:
        written: the directory, complete.
        final: what it is called from now on.
        step: that of the checkpoint; None: there is no tracker file.
    """
    root = final.parent
    sync(*written.iterdir(), written)
    if step is not None:
        _write_tracker(root, step)
    if final.exists():
        final.rename(replaced(final))
    written.rename(final)
    sync(root)
    if step is not None:
        _move_tracker(root)


def point(root: Path, step: int) -> None:
    """Make the tracker file name the checkpoint of ``step``, which is there."""
    _write_tracker(root, step)
    _move_tracker(root)


def _write_tracker(root: Path, step: int) -> None:
    (root / PENDING).write_text(str(step))
    sync(root / PENDING)


def _move_tracker(root: Path) -> None:
    (root / PENDING).rename(root / TRACKER)
    sync(root)


def prune(root: Path, step: int, keep_last: int, keep: Collection[int] = ()) -> None:
    """Mark all but the last checkpoints for deletion, counted back from the one just written.

    Those of later steps are not this run's past, and stay.

    Args:
        root: their directory.
        step: that of the checkpoint just written.
        keep_last: how many to keep, this one included; 0 keeps all.
        keep: steps whose checkpoints stay in any case.
    """
    past = [saved for saved in saved_steps(root) if saved <= step]
    for old in past[:-keep_last] if keep_last else []:
        if old in keep:
            continue
        doomed = step_dir(root, old)
        # Renamed first, so that a half-deleted one never looks whole.
        doomed.rename(doomed.with_name(f".{doomed.name}.deleted"))


def sweep(root: Path) -> None:
    """Delete what a save has left over, or an earlier one that was killed."""
    for path in root.glob(".iter_*.*"):
        final = root / path.name.split(".")[1]
        # The only whole checkpoint of its step is no leftover, whatever it is called.
        if path != replaced(final) or is_complete(final):
            shutil.rmtree(path, ignore_errors=True)
