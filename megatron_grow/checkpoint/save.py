"""Save a run: whole or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import torch.distributed as dist

from megatron_grow.checkpoint.formats import DEFAULT, FORMATS
from megatron_grow.checkpoint.layout import step_dir
from megatron_grow.checkpoint.lock import Holder, check_held
from megatron_grow.checkpoint.manifest import write_manifest
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.root import latest
from megatron_grow.checkpoint.staging import partial, prune, publish, sweep
from megatron_grow.inputs.errors import AgreedError, UserError
from megatron_grow.parallel.agreement import gather, leads, together
from megatron_grow.parallel.last_words import remember_checkpoint
from megatron_grow.state.piece import Piece
from megatron_grow.state.tensors import LogicalTensor


def save(
    root: Path,
    record: Record,
    pieces: Sequence[Piece],
    tensors: dict[str, LogicalTensor],
    *,
    with_optimizer: bool = True,
    keep_last: int = 0,
    keep: Collection[int] = (),
    holder: Holder | None = None,
    group: dist.ProcessGroup | None = None,
) -> Path:
    """Write ``root/iter_*`` in the format of runs; every rank takes part.

    The directory is written under another name, of this save alone, and renamed when rank 0 has
    seen that it is complete and on disk; the tracker file moves last.

    Args:
        root: directory of the run's checkpoints.
        record: where the run stands.
        pieces: this rank's live state.
        tensors: the model's logical tensors.
        with_optimizer: save main parameters and moments too.
        keep_last: complete checkpoints to keep, this one included; 0 keeps all.
        keep: steps whose checkpoints stay in any case.
        holder: on rank 0, as whom ``root`` is held; None: nobody else writes there.
        group: over which the ranks agree, as :func:`.agreement.gather`.

    Returns:
        The checkpoint's directory.

    Raises:
        AgreedError: a file system refuses, rank 0 does not see what another rank has written, or
            ``root`` is another's now.
            Nothing is left of the directory; older checkpoints are as they were.
    """
    final = step_dir(root, record.step)
    written = partial(final, gather(secrets.token_hex(4), group)[0])

    def begin() -> None:
        if holder is not None:
            check_held(root, holder)
        sweep(root)
        written.mkdir(parents=True)

    def finish() -> None:
        write_manifest(written, files, shards=shards)
        if holder is not None:
            check_held(root, holder)
        publish(written, final, record.step)

    def thin_out() -> None:
        prune(root, record.step, keep_last, keep)
        sweep(root)

    try:
        together(lambda: begin() if leads() else None, group)
        files, shards = FORMATS.find(DEFAULT, "format").save(
            written, record, pieces, tensors, with_optimizer=with_optimizer, group=group
        )
        together(lambda: finish() if leads() else None, group)
    except Exception as error:
        # Every rank removes what it sees: they may not share a file system.
        shutil.rmtree(written, ignore_errors=True)
        if not isinstance(error, UserError):
            raise
        raise AgreedError(
            f"the checkpoint of step {record.step} could not be written to {root}: {error}; "
            f"{_last_good(root)}"
        ) from None
    remember_checkpoint(final)
    together(lambda: thin_out() if leads() else None, group)
    return final


def _last_good(root: Path) -> str:
    try:
        path = latest(root)
    except UserError as error:
        return str(error)
    return f"the last good one is {path}" if path else "there is none before it"
