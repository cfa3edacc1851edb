"""The saves of a run, of which one may be under way while training goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.save import save
from megatron_grow.inputs.errors import AgreedError, UserError
from megatron_grow.parallel import process_groups
from megatron_grow.parallel.cpu import device
from megatron_grow.parallel.patience import during
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.memory import host_copies
from megatron_grow.state.piece import Piece
from megatron_grow.state.tensors import LogicalTensor


class Saves:
    """Saves of the state, one at a time; asynchronous ones are under way while training goes on.

    These are done by a thread of each rank, which does the same as the others on a copy of the
    state. The threads agree over a process group of their own, so that nothing of theirs gets
    between the collectives of a step.

    A context manager around the training. Every rank takes part in all but :attr:`done`.
    """

    def __init__(self, tell: Callable[[int, Path], None], *, asynchronous: bool) -> None:
        """Nothing is saved yet.

        Args:
            tell: takes the step and the directory of each checkpoint that is complete.
            asynchronous: whether :meth:`begin` lets training go on.
        """
        self._tell, self._asynchronous = tell, asynchronous
        self._under_way: tuple[int, Future[Path]] | None = None
        self.last: tuple[int, Path] | None = None
        """Step and directory of the checkpoint that was completed last."""

    def __enter__(self) -> Saves:
        if self._asynchronous:
            self._group = process_groups.for_a_thread()
            self._thread = ThreadPoolExecutor(1, "save", _leave_streams_alone, (device(),))
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """End what is under way, unless a rank may be gone."""
        if isinstance(error, AgreedError):
            with contextlib.suppress(UserError):  # the first one is told
                self.finish()
        elif error is None:
            self.finish()
            if self._asynchronous:
                self._thread.shutdown()
                dist.destroy_process_group(self._group)

    def save(
        self,
        root: Path,
        record: Record,
        pieces: Sequence[Piece],
        tensors: dict[str, LogicalTensor],
        **options: Any,
    ) -> None:
        """Write a checkpoint; it is complete after this.

        The arguments are those of :func:`.checkpoint.save.save`.

        Raises:
            AgreedError: this one, or the one that was under way, could not be written.
        """
        self.finish()
        with _waiting(record.step):
            path = save(root, record, pieces, tensors, **options)
        self._complete(record.step, path)

    def begin(
        self,
        root: Path,
        record: Record,
        pieces: Sequence[Piece],
        tensors: dict[str, LogicalTensor],
        *,
        with_optimizer: bool = True,
        **options: Any,
    ) -> None:
        """The same; an asynchronous one has only been copied after this."""
        if not self._asynchronous:
            return self.save(
                root, record, pieces, tensors, with_optimizer=with_optimizer, **options
            )
        self.finish()
        stored = [
            piece
            for piece in pieces
            if piece.owned and (with_optimizer or piece.kind == MAIN_PARAM)
        ]
        copies = host_copies([piece.data for piece in stored])
        saving = self._thread.submit(
            save,
            root,
            deepcopy(record),
            [replace(piece, data=data) for piece, data in zip(stored, copies, strict=True)],
            tensors,
            with_optimizer=with_optimizer,
            group=self._group,
            **options,
        )
        self._under_way = record.step, saving

    @property
    def done(self) -> bool:
        """Whether this rank's part of the one that was under way has ended."""
        return self._under_way is not None and self._under_way[1].done()

    def finish(self) -> None:
        """Wait for the one that is under way, if there is one.

        Raises:
            AgreedError: it could not be written.
        """
        if self._under_way is not None:
            (step, saving), self._under_way = self._under_way, None
            with _waiting(step):
                path = saving.result()
            self._complete(step, path)

    def _complete(self, step: int, path: Path) -> None:
        self.last = step, path
        self._tell(step, path)


def _waiting(step: int) -> contextlib.AbstractContextManager[None]:
    return during(f"the save after step {step}", pause=True)


def _leave_streams_alone(device: torch.device) -> None:
    """Give this thread a stream: torch's writer waits for its thread's, by default the GPU's own,
    in which training has much to do."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.cuda.set_stream(torch.cuda.Stream())
