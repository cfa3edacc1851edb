"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from megatron_grow.checkpoint.layout import COMPLETE, TRACKER, saved_steps, set_aside, step_dir


def partial(final: Path) -> Path:
    """Where ``final`` is written until it is complete."""
    return final.with_name(f".{final.name}.partial")


def sync(paths: Iterable[Path]) -> None:
    """Put files, and the names in directories, on disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def move_into_place(final: Path) -> None:
    """Rename; an older directory of that name stays whole until the new one can take over."""
    written = partial(final)
    sync([*written.iterdir(), written])
    if final.exists():
        final.rename(set_aside(final))
    written.rename(final)
    sync([final.parent])


def point(root: Path, step: int) -> None:
    """Make the tracker file name the checkpoint of ``step``."""
    tracker = root / f".{TRACKER}"
    tracker.write_text(str(step))
    sync([tracker])
    tracker.rename(root / TRACKER)
    sync([root])


def prune(root: Path, keep_last: int) -> None:
    """Mark all but the last checkpoints for deletion; 0 keeps all."""
    for step in saved_steps(root)[:-keep_last] if keep_last else []:
        doomed = step_dir(root, step)
        # Renamed first, so that a half-deleted one never looks whole.
        doomed.rename(doomed.with_name(f".{doomed.name}.deleted"))


def sweep(root: Path) -> None:
    """Delete what a save has left over, or an earlier one that was killed."""
    for path in root.glob(".iter_*.*"):
        final = root / path.stem.removeprefix(".")
        # The only whole checkpoint of its step is no leftover, whatever it is called.
        if path != set_aside(final) or (final / COMPLETE).exists():
            shutil.rmtree(path, ignore_errors=True)
