"""The way of micro-batches through the chunks of a rank, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice, tee

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.live.objective import Objective
from megatron_grow.model.architectures import architecture_of, data_options_of
from megatron_grow.parallel import process_groups

Batches = Iterator[dict[str, torch.Tensor]]


class Passes:
    """Runs the micro-batches of a global batch by megatron-core's schedule."""

    def __init__(
        self, chunks: Sequence[DistributedDataParallel], stage: Stage, config: RunConfig
    ) -> None:
        """Under the process groups of ``stage``, whose model this rank has ``chunks`` of."""
        self._chunks, self._micro_batch_size = chunks, stage.batch.micro_batch_size
        self._architecture = architecture_of(stage.model)
        heads = [process_groups.is_last_chunk(i) for i in range(len(chunks))]
        self._has_head = any(heads)
        self._chunk_reads = [
            self._architecture.reads(first=process_groups.is_first_chunk(i), last=last)
            for i, last in enumerate(heads)
        ]
        engine = chunks[0].config
        self._hidden_length = self._architecture.hidden_length(
            stage.model,
            stage.batch.seq_length,
            data_options_of(stage.model, config.data),
            engine.tensor_model_parallel_size if engine.sequence_parallel else 1,
        )
        at_once = self._micro_batch_size * parallel_state.get_data_parallel_world_size()
        self._micro_batches = stage.batch.global_batch_size // at_once
        self.objective = Objective(self._architecture, self._micro_batches)

    @property
    def reads(self) -> bool:
        """Whether a chunk of this rank reads micro-batches, as the architecture says."""
        return any(self._chunk_reads)

    def run(self, batches: Batches | None, *, forward_only: bool) -> torch.Tensor:
        """Take the micro-batches of a global batch through all chunks.

        Args:
            batches: this rank's, of which it takes what it needs; None where it reads none.
            forward_only: without gradients.

        Returns:
            What this rank's add up to (:meth:`.Objective.means`).
        """
        weights = None
        if self._architecture.has_counts and not forward_only and self._has_head:
            assert batches is not None, "what has the head reads"
            step = list(islice(batches, self._micro_batches))
            weights, batches = self.objective.weights(step), iter(step)
        # Each chunk goes through all micro-batches of the step by itself.
        readers = iter(tee(batches or (), sum(self._chunk_reads)))
        results = get_forward_backward_func()(
            forward_step_func=partial(self.objective.forward_step, weights),
            data_iterator=[next(readers) if reads else None for reads in self._chunk_reads],
            model=self._chunks,
            num_microbatches=self._micro_batches,
            seq_length=self._hidden_length,
            micro_batch_size=self._micro_batch_size,
            forward_only=forward_only,
        )
        return self.objective.total(results)
