"""The directories of a run: one run in them at a time, seen by all ranks, nothing in them lost."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from megatron_grow.checkpoint.layout import PENDING, TRACKER, step_dir
from megatron_grow.checkpoint.lock import Holder, held
from megatron_grow.checkpoint.staging import point, sweep
from megatron_grow.config.release import RELEASES
from megatron_grow.config.run import RESOLVED, RunConfig, to_yaml
from megatron_grow.files.durable import flush
from megatron_grow.inputs.errors import UserError
from megatron_grow.parallel.agreement import gather, leads, together
from megatron_grow.train import rows, status
from megatron_grow.train.choice import Choice, latest_or_none
from megatron_grow.train.identity import FILE_NAME, Identity, jobs
from megatron_grow.train.releases import EXPORT

Result = TypeVar("Result")

_ROOM = 1 << 16
"""Bytes without which there is no use in beginning."""
_PATIENCE_SECONDS = 5.0
"""For a file that another host has just made."""


@contextmanager
def claimed(config: RunConfig) -> Iterator[Holder | None]:
    """Hold a run's directories while it lasts; every rank takes part.

    Gives, on rank 0, as whom they are held; elsewhere None.

    They are made if they do not exist, and gone again if nothing was written to them. All ranks
    write checkpoints, so all of them have seen that it is one directory.

    Raises:
        UserError: another job holds one of them, one cannot be written to, or is not shared.
    """
    output, root = Path(config.run.output_dir), config.checkpoint_dir
    with ExitStack() as stack:

        def enter() -> Holder:
            stack.enter_context(_made(output, "run.output_dir"))
            stack.enter_context(_made(root, "checkpoint.save"))
            me = Holder.here()

            def hold(directory: Path) -> None:
                try:
                    stack.enter_context(held(directory, me))
                except OSError:  # a full disk: what a failed save has left belongs to nobody now
                    sweep(root)
                    _io(lambda: stack.enter_context(held(directory, me)), directory)

            # The directory of checkpoints first: who holds it may make room there.
            for directory in dict.fromkeys([root.resolve(), output.resolve()]):
                hold(directory)
            sweep(root)  # a save that filled the disk may not have come to it
            return me

        holder = together(lambda: _io(enter, output) if leads() else None)
        _prove_shared(root, "checkpoint.save")
        together(lambda: _io(lambda: _prove_room(root), root))
        yield holder


def make_room(config: RunConfig, choice: Choice) -> list[str]:
    """Set aside what a run would mix with its own, and leave there what it is; rank 0 alone.

    Returns:
        Lines that say what is now where.
    """
    root, output = config.checkpoint_dir, Path(config.run.output_dir)
    lines = _make_room(root, output, choice)
    Identity(choice.run_id, jobs(os.environ)).write(output)
    (output / RESOLVED).write_text(to_yaml(config))
    return lines


def _make_room(root: Path, output: Path, choice: Choice) -> list[str]:
    if choice.clears:
        tracker = [root / TRACKER] if (root / TRACKER).exists() else []
        names = [FILE_NAME, status.FILE_NAME, RESOLVED, "tensorboard", RELEASES, EXPORT]
        old = [*(output / name for name in names), *output.glob(f"{rows.FILE_NAME}*")]
        found = [path for path in old if path.exists()]
        moved = [_set_aside(root, [*tracker, *root.glob("iter_*")]), _set_aside(output, found)]
        return [f"set aside: {path} holds the earlier run" for path in moved if path]
    if choice.path is None or not choice.own:
        return []
    if latest_or_none(root) != choice.path or (root / PENDING).exists():
        point(root, choice.step)  # first, so that a kill leaves a place to resume from
    path = _set_aside(root, [step_dir(root, later) for later in choice.later])
    if path is None:
        return []
    point(path, choice.later[-1])
    return [f"set aside: {path} holds the checkpoints after step {choice.step}"]


def _set_aside(directory: Path, paths: list[Path]) -> Path | None:
    """Move what is in ``directory`` to one beside it, of today; None where there is nothing."""
    if not paths:
        return None
    aside = directory / f"set_aside_{datetime.now():%Y%m%dT%H%M%S}"
    while aside.exists():
        aside = aside.with_name(f"{aside.name}_{secrets.token_hex(2)}")
    aside.mkdir()
    for path in paths:
        path.rename(aside / path.name)
    return aside


@contextmanager
def _made(directory: Path, field: str) -> Iterator[None]:
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except FileExistsError:
        raise UserError(f"{field}={directory} is not a directory") from None
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # it is in use
                path.rmdir()


def _prove_shared(directory: Path, field: str) -> None:
    """Raise :class:`UserError` on all ranks unless all see what rank 0 makes in ``directory``."""
    mark = directory / gather(f".seen.{secrets.token_hex(8)}")[0]
    together(lambda: _io(mark.touch, directory) if leads() else None)
    try:
        seen = gather((socket.gethostname(), _appears(mark)))
    finally:
        if leads():
            mark.unlink()
    blind = {rank: host for rank, (host, sees) in enumerate(seen) if not sees}
    if blind:
        hosts = ", ".join(sorted(set(blind.values())))
        raise UserError(
            f"{field}={directory} is not the same directory on all ranks: what rank 0 on "
            f"{seen[0][0]} writes there, ranks {', '.join(map(str, blind))} on {hosts} do not see; "
            "name a directory of a file system that all of them share"
        )


def _prove_room(directory: Path) -> None:
    """Write a block to a directory, and take it away again."""
    with tempfile.NamedTemporaryFile(prefix=".room.", dir=directory) as file:
        file.write(bytes(_ROOM))
        flush(file)


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _io(action: Callable[[], Result], directory: Path) -> Result:
    """``action``, whose failing disk is told in one line."""
    try:
        return action()
    except OSError as error:
        raise UserError(
            f"{error.filename or directory} cannot be written: {error.strerror}"
        ) from None
