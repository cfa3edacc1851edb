"""What a rehearsal leaves out of a run: whatever would only repeat what it has seen.

The run file stays as it is. A rank takes the first steps of each stage and its last, of each step
the first micro-batches, of each evaluation one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import param_and_grad_buffer

from megatron_grow.checkpoint.layout import step_dir
from megatron_grow.checkpoint.record import Record
from megatron_grow.data import ahead
from megatron_grow.live.passes import Batches, Passes
from megatron_grow.live.stage import LiveStage
from megatron_grow.methods.base import Context
from megatron_grow.state import materialise
from megatron_grow.train import saves
from megatron_grow.train.loop import Loop


def skip_steps(first: int, stop: bool) -> None:
    """Take the ``first`` steps of a stage, and its last.

    With ``stop``, the run is asked to stop after the first of the last stage: it saves.
    """

    whole = Loop.steps

    def steps(self: Loop, batches: Batches | None) -> Iterator[Context]:
        begins = self.ctx.step
        for ctx in whole(self, batches):
            yield ctx
            if ctx.step - begins != first:
                continue
            if stop and ctx.stage.index == len(ctx.stages) - 1:
                ctx.stop()
            else:
                ctx.step = max(ctx.step, ctx.stage.last_step - 1)

    Loop.steps = steps  # type: ignore[method-assign]


def skip_micro_batches() -> None:
    """Two for each pipeline stage: by then the first are done, and no peak grows."""
    made = Passes.__init__

    def init(self: Passes, chunks: Any, stage: Any, config: Any) -> None:
        made(self, chunks, stage, config)
        most = 2 * stage.parallel.pipeline_model_parallel_size
        self._micro_batches = min(self._micro_batches, most)

    Passes.__init__ = init  # type: ignore[method-assign]


def skip_evaluations() -> None:
    """One batch in each evaluation."""
    evaluate = LiveStage.evaluate

    def once(self: LiveStage, batches: Any, iterations: int, *args: Any) -> Any:
        return evaluate(self, batches, min(iterations, 1), *args)

    LiveStage.evaluate = once  # type: ignore[method-assign, assignment]


def skip_fresh_values() -> None:
    """Leave them out: they are real arithmetic on the CPU, for values that nobody holds."""
    fresh = materialise.fresh

    def skipped(tensor: Any, box: Any, init: Any, seed: int, out: torch.Tensor) -> torch.Tensor:
        return fresh(tensor, box, init, seed, out) if out.is_cpu else out

    materialise.fresh = skipped  # type: ignore[assignment]


class Shards:
    """Of a buffer of gradients or parameters, each cut when it is asked for."""

    def __init__(self, buffer: torch.Tensor, ranks: int) -> None:
        """As many as there are ``ranks``, all of one size."""
        self._buffer, self._size = buffer, buffer.numel() // ranks

    def __getitem__(self, rank: int) -> torch.Tensor:
        """A rank's."""
        return self._buffer[rank * self._size : (rank + 1) * self._size]


def skip_shards_of_others() -> None:
    """Do not cut a bucket for all ranks: megatron-core does, twice, and takes its own of each."""
    param_and_grad_buffer.shard_buffer = Shards


class _InTurn(Executor):
    """Does at once what it is given, in the thread that gives it."""

    def __init__(self, *options: Any) -> None: ...

    def submit(self, call: Callable, /, *args: Any, **options: Any) -> Future:
        done: Future = Future()
        try:
            done.set_result(call(*args, **options))
        except Exception as error:
            done.set_exception(error)
        return done


def read_in_turn() -> None:
    """Read ahead without a thread: what is fake is so in one alone."""
    ahead.ThreadPoolExecutor = _InTurn  # type: ignore[misc, assignment]


def skip_saves() -> None:
    """Write no checkpoint: they would be as large as real ones."""

    def unsaved(root: Path, record: Record, *state: Any, **options: Any) -> Path:
        return step_dir(root, record.step)

    saves.save = unsaved


def skip_passes() -> None:
    """Take part in all but the passes: for ranks of which nobody asks how they train."""

    def nothing(self: Passes, batches: Any, *, forward_only: bool) -> torch.Tensor:
        return self.objective.zeros()

    Passes.run = nothing  # type: ignore[method-assign]
