"""The layouts and micro-batches that a stage could have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product

from megatron_grow.config.batch import BatchShape
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.config.stages import Stage
from megatron_grow.inputs.errors import UserError

MOST_TOKENS = 1 << 14
"""Tokens of a micro-batch beyond which a GPU gains nothing more of its size."""
_MOST_CHUNKS = 8
"""Of layers on a pipeline rank."""


def layouts(
    stage: Stage, train: TrainSection, world_size: int, gpus_per_node: int
) -> Iterator[tuple[ParallelConfig, BatchShape]]:
    """All that the stage can train in, with the batch of the run file cut into micro-batches.

    Tensor-parallel ranks are of one node, and share the sequence where they can. What else
    the stage's layout says (context and expert parallelism, the distributed optimizer, overlap)
    stays.

    Args:
        stage: of the run.
        train: what is recomputed.
        world_size: ranks of the job.
        gpus_per_node: of the machine.
    """
    depth, most = stage.model.num_layers, max(1, MOST_TOKENS // stage.batch.seq_length)
    micro_batches = [size for size in _divisors(stage.batch.global_batch_size) if size <= most]
    for tensor, pipeline in product(
        _powers_of_two(min(gpus_per_node, world_size)), _divisors(depth) if depth else [1]
    ):
        for chunks in _divisors(depth // pipeline) if pipeline > 1 else [1]:
            if chunks > _MOST_CHUNKS:
                continue
            parallel = _laid_out(stage.parallel, tensor, pipeline, chunks)
            for size in micro_batches:
                batch = replace(stage.batch, micro_batch_size=size)
                if why_not(stage, parallel, batch, train, world_size) is None:
                    yield parallel, batch


def why_not(
    stage: Stage,
    parallel: ParallelConfig,
    batch: BatchShape,
    train: TrainSection,
    world_size: int,
) -> str | None:
    """Why the stage cannot train in this layout; None where it can."""
    try:
        where = f"stages[{stage.index}]"
        parallel.check(stage.model, replace(train, **asdict(batch)), world_size, where)
    except UserError as error:
        return str(error)
    return None


def _laid_out(parallel: ParallelConfig, tensor: int, pipeline: int, chunks: int) -> ParallelConfig:
    return replace(
        parallel,
        tensor_model_parallel_size=tensor,
        sequence_parallel=tensor > 1,
        pipeline_model_parallel_size=pipeline,
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
        num_layers_in_first_pipeline_stage=None,
        num_layers_in_last_pipeline_stage=None,
        account_for_embedding_in_pipeline_split=False,
        account_for_loss_in_pipeline_split=False,
        pipeline_model_parallel_layout=None,
    )


def _powers_of_two(most: int) -> list[int]:
    return [1 << power for power in range(most.bit_length())]


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]
