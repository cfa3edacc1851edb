"""How a model is laid out over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.pipeline import PipelineConfig, check_pipeline, chunk_layers
from megatron_grow.config.sections import TrainSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import Count, check_fields
from megatron_grow.state.axes import AXES, Axis, MeshDim
from megatron_grow.state.sharding import Mesh, undivided

_MESH = {
    MeshDim.TENSOR: "tensor_model_parallel_size",
    MeshDim.EXPERT: "expert_model_parallel_size",
    MeshDim.EXPERT_TENSOR: "expert_tensor_parallel_size",
}
"""The field that says how many ranks a dimension of the mesh has."""


@dataclass(frozen=True)
class ParallelConfig(PipelineConfig):
    """A parallel layout; data parallelism takes the ranks that the others leave.

    Field names are those of megatron-core's ``TransformerConfig`` and
    ``DistributedDataParallelConfig``.
    """

    tensor_model_parallel_size: Count = 1
    expert_model_parallel_size: Count = 1
    """Ranks that share the experts of each layer."""
    expert_tensor_parallel_size: Count | None = None
    """Ranks that share each expert; absent: tensor_model_parallel_size."""
    context_parallel_size: Count = 1
    """Ranks that share the tokens of each sequence; needs Transformer Engine."""
    sequence_parallel: bool = False
    """Shard the activations between tensor-parallel regions along the sequence."""
    use_distributed_optimizer: bool = True
    """Shard optimizer state over data-parallel ranks (Adam only; others replicate it)."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass still runs (GPU)."""
    overlap_param_gather: bool = False
    """Gather parameters while the forward pass already runs (GPU)."""
    bucket_size: Count | None = None
    """Parameters in one gradient bucket; absent: megatron-core's choice."""

    def __post_init__(self) -> None:
        check_fields(self, "parallel.")
        check_pipeline(self)
        tp, etp = self.tensor_model_parallel_size, self.expert_tensor_parallel_size
        if self.expert_model_parallel_size == 1 and etp not in (None, tp):
            # megatron-core reduces gradients of experts over the wrong ranks, and says nothing.
            raise UserError(
                f"parallel.expert_tensor_parallel_size={etp} must be "
                f"tensor_model_parallel_size={tp} where expert_model_parallel_size is 1"
            )
        if self.overlap_param_gather and not (
            self.use_distributed_optimizer and self.overlap_grad_reduce
        ):
            raise UserError(
                "parallel.overlap_param_gather=true needs use_distributed_optimizer=true "
                "and overlap_grad_reduce=true"
            )

    @property
    def mesh(self) -> Mesh:
        """Ranks along each dimension that partitions tensors in equal runs."""
        return {
            dim: getattr(self, field) or self.tensor_model_parallel_size
            for dim, field in _MESH.items()
        }

    def data_parallel_size(self, world_size: int) -> int:
        """Groups of ranks that read samples of their own, on ``world_size`` ranks."""
        return world_size // self._ranks_for_one_batch

    def replicas(self, world_size: int, *, of_experts: bool) -> int:
        """Ranks that hold the same part of a tensor and sum its gradients, on ``world_size`` ranks.

        Args:
            world_size: ranks of the job.
            of_experts: whether the ranks that share experts share the tensor.
        """
        if not of_experts:
            return self.data_parallel_size(world_size) * self.context_parallel_size
        shared = self.mesh[MeshDim.EXPERT] * self.mesh[MeshDim.EXPERT_TENSOR]
        return world_size // (shared * self.pipeline_model_parallel_size)

    @property
    def _ranks_for_one_batch(self) -> int:
        return (
            self.tensor_model_parallel_size
            * self.pipeline_model_parallel_size
            * self.context_parallel_size
        )

    def describe(self, world_size: int) -> str:
        """The layout in short, for example ``TP2 PP2 VPP2 DP1 SP``.

        Uneven pipeline stages show behind PP: ``first=1``, ``last=3``, ``+E`` and ``+L`` where
        embedding and loss count as layers, or the layout itself.
        """
        words = [
            self.describe_cut(),
            *([f"CP{self.context_parallel_size}"] if self.context_parallel_size > 1 else []),
            f"DP{self.data_parallel_size(world_size)}",
            *(["SP"] if self.sequence_parallel else []),
        ]
        return " ".join(words)

    def describe_cut(self) -> str:
        """How the model itself is cut, in short, for example ``TP2 PP2 VPP2``."""
        uneven = [
            field.removeprefix("num_layers_in_").removesuffix("_pipeline_stage") + f"={count}"
            for field, count in self.layers_at_ends.items()
        ]
        uneven += ["+E"] * self.account_for_embedding_in_pipeline_split
        uneven += ["+L"] * self.account_for_loss_in_pipeline_split
        uneven += filter(None, [self.pipeline_model_parallel_layout])
        words = [
            f"TP{self.tensor_model_parallel_size}",
            f"PP{self.pipeline_model_parallel_size}",
            *([f"VPP{self.model_chunks}"] if self.model_chunks > 1 else []),
            *([f"EP{experts}"] if (experts := self.expert_model_parallel_size) > 1 else []),
            *([f"ETP{self.expert_tensor_parallel_size}"] if experts > 1 else []),
            *uneven,
        ]
        return " ".join(words)

    def check(self, model: ModelConfig, train: TrainSection, world_size: int, where: str) -> None:
        """Raise :class:`UserError` if ``model`` cannot train this way on ``world_size`` ranks.

        ``where`` names the stage in the message.
        """
        self._check_ranks(model, world_size, where)
        for chunks in chunk_layers(self, model.num_layers, where):
            _check_recompute(chunks, train, where)
        self._check_sequence(train, where)
        self._check_batch(train, world_size, where)

    def undivided(self, model: ModelConfig) -> Iterator[tuple[str, int]]:
        """Fields of ``model``, and their values, that tensor-parallel ranks do not divide."""
        sizes = model.resolved
        for rule in AXES:
            if rule.partitioned_by is MeshDim.TENSOR and not rule.padded:
                for name in rule.fields:
                    if getattr(sizes, name) % self.tensor_model_parallel_size:
                        yield name, getattr(sizes, name)

    def check_axes(self, axes: Iterable[Axis], where: str) -> None:
        """Raise :class:`UserError` if the ranks that share ``axes``, a model's, cannot.

        ``where`` names the layout in the message.
        """
        axes = list(axes)
        for axis in undivided(axes, self.mesh):
            dim = axis.rule.partitioned_by
            assert dim is not None
            raise UserError(
                f"{where}: {_MESH[dim]}={self.mesh[dim]} does not divide the {axis.size} entries "
                f"of the axis {axis.name}"
            )
        experts = self.expert_model_parallel_size
        if experts > 1 and not any(a.rule.partitioned_by is MeshDim.EXPERT for a in axes):
            raise UserError(
                f"{where}: expert_model_parallel_size={experts}, but the model has no experts"
            )

    def check_context(self, transformer_impl: str, seq_length: int, where: str) -> None:
        """Raise :class:`UserError` if ranks cannot share the tokens of a sequence.

        To be asked after the architecture, which may have no attention of that kind: what would do
        here is then no help. ``where`` names the stage in the message.
        """
        cp = self.context_parallel_size
        if cp == 1:
            return
        if find_spec("transformer_engine") is None:
            raise UserError(
                f"{where}: context_parallel_size={cp} needs Transformer Engine, which is not "
                "installed; without it context_parallel_size must be 1"
            )
        if transformer_impl != "transformer_engine":
            raise UserError(
                f"{where}: context_parallel_size={cp} needs "
                f"train.transformer_impl=transformer_engine, it is {transformer_impl}"
            )
        # Each rank gets one part from the front and one from the back: causal work is even.
        if seq_length % (2 * cp):
            raise UserError(
                f"{where}: context_parallel_size={cp} needs "
                f"train.seq_length={seq_length} to be a multiple of {2 * cp}"
            )

    def _check_ranks(self, model: ModelConfig, world_size: int, where: str) -> None:
        tp, cp = self.tensor_model_parallel_size, self.context_parallel_size
        if world_size % self._ranks_for_one_batch:
            raise UserError(
                f"{where}: tensor_model_parallel_size={tp} x "
                f"pipeline_model_parallel_size={self.pipeline_model_parallel_size} "
                + (f"x context_parallel_size={cp} " if cp > 1 else "")
                + f"does not divide the {world_size} ranks of this job"
            )
        etp, ep = self.mesh[MeshDim.EXPERT_TENSOR], self.expert_model_parallel_size
        if world_size % (etp * ep * self.pipeline_model_parallel_size):
            raise UserError(
                f"{where}: expert_tensor_parallel_size={etp} x expert_model_parallel_size={ep} x "
                f"pipeline_model_parallel_size={self.pipeline_model_parallel_size} does not divide "
                f"the {world_size} ranks of this job"
            )
        for name, size in self.undivided(model):
            raise UserError(
                f"{where}: tensor_model_parallel_size={tp} does not divide {name}={size}"
            )

    def _check_sequence(self, train: TrainSection, where: str) -> None:
        tp, cp = self.tensor_model_parallel_size, self.context_parallel_size
        if self.sequence_parallel and train.seq_length % (tp * cp):
            raise UserError(
                f"{where}: sequence_parallel needs seq_length={train.seq_length} to be a multiple "
                f"of tensor_model_parallel_size={tp}"
                + (f" x context_parallel_size={cp}" if cp > 1 else "")
            )

    def _check_batch(self, train: TrainSection, world_size: int, where: str) -> None:
        peers, pp = self.data_parallel_size(world_size), self.pipeline_model_parallel_size
        batch, together = train.global_batch_size, train.micro_batch_size * peers
        made_of = f"micro_batch_size={train.micro_batch_size} x data-parallel size {peers}"
        if batch % together:
            raise UserError(
                f"{where}: train.global_batch_size={batch} is not a multiple of {made_of}"
            )
        if self.model_chunks > 1 and batch // together % pp:
            raise UserError(
                f"{where}: train.global_batch_size={batch} is not a multiple of {made_of} x "
                f"pipeline_model_parallel_size={pp}, as the interleaved pipeline "
                f"(virtual_pipeline_model_parallel_size={self.model_chunks}) needs it to be"
            )


def _check_recompute(chunks: list[range], train: TrainSection, where: str) -> None:
    if train.recompute_granularity != "full":
        return
    for layers in chunks:
        if len(layers) % train.recompute_num_layers:
            raise UserError(
                f"{where}: train.recompute_num_layers={train.recompute_num_layers} does not divide "
                f"the {len(layers)} layers of a pipeline stage"
            )
