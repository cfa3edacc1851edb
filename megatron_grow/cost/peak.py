"""How much memory a training step takes at most, by formula."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.cost.memory import MemoryEstimate
from megatron_grow.cost.step import Step


@dataclass(frozen=True)
class PeakMemory:
    """Bytes on one rank at the moment of a step at which they are most."""

    pipeline_rank: int
    states: MemoryEstimate
    activations: int
    """Of the micro-batches that are in flight, logits included."""
    working: int
    """What the pass needs besides at that moment, gradients of activations above all."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.states.total + self.activations + self.working


def peak_memory(step: Step) -> list[PeakMemory]:
    """The peak on each pipeline rank.

    Buffers of a library, such as NCCL's, and what is lost between blocks of memory are not in it.
    """
    return [
        PeakMemory(rank, states, *_fullest_moment(step, rank))
        for rank, states in enumerate(step.placement.states)
    ]


def growth_peak(
    old: MemoryEstimate, new: MemoryEstimate, *, shares_state: bool, exchanged: int
) -> int:
    """The peak of a growth on a rank.

    What is carried of the old state stays while the new stage is built and filled. Where ranks
    share the optimizer's state, megatron-core copies the weights that a model has been built with
    into a buffer; that is the fullest moment if the rank's share is small.

    Args:
        old: what the rank has before.
        new: what it has after.
        shares_state: whether ranks share the new optimizer's state.
        exchanged: bytes that are sent and received at a time.
    """
    building = 2 * new.weights + new.gradients if shares_state else 0
    return old.carried + max(building, new.total + exchanged)


def in_flight(parallel: ParallelConfig, rank: int, micro_batches: int) -> int:
    """Forward passes through one chunk of a pipeline rank whose backward pass has not come yet.

    At most, under megatron-core's schedules: of the plain pipeline (1F1B), and of the interleaved
    one, in which a rank has several chunks and takes each micro-batch through all of them.

    Args:
        parallel: the layout.
        rank: of the pipeline.
        micro_batches: of a step.
    """
    chunks = parallel.model_chunks
    behind = parallel.pipeline_model_parallel_size - 1 - rank
    several = 2 * behind + (chunks - 1) * parallel.pipeline_model_parallel_size
    return min((behind if chunks == 1 else several) + 1, micro_batches * chunks)


def _fullest_moment(step: Step, rank: int) -> tuple[int, int]:
    """Activations on a pipeline rank, and what is needed besides, when both together are most."""
    placed, one, pieces = step.placement, step.activations, step.recompute_num_layers
    ranks, layers = placed.parallel.pipeline_model_parallel_size, max(placed.layers[rank])
    first, last = rank == 0, rank == ranks - 1
    kept = one.boundary // pieces if pieces else one.layer
    batch = one.batch if first or last else 0
    held = in_flight(placed.parallel, rank, step.micro_batches) * (layers * kept + batch)
    held += one.gathered
    if placed.parallel.model_chunks > 1:  # sent and received, forward and back, while it computes
        held += 4 * one.boundary
    # Where a tied head and an embedding are one parameter, the head's gradient waits for the other.
    tied = ranks == 1 and placed.model.share_embeddings_and_output_weights
    waiting = one.embedding_gradient if tied else 0
    moments = [(held, one.embedding_gradient + waiting)] if first else []
    if last:
        with_head = held + one.boundary + one.head
        moments += [(with_head, one.loss), (with_head, one.head_backward)]
    if layers:
        again = one.layer * pieces if pieces else 0
        moments.append((held, again + one.layer_backward + waiting))
    return max(moments, key=sum)
