"""How a model is laid out over ranks."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_grow.config.errors import UserError
from megatron_grow.config.model import ModelConfig


@dataclass(frozen=True)
class ParallelConfig:
    """A parallel layout; data parallelism takes the ranks that tensor and pipeline leave.

    Field names are those of megatron-core's ``ModelParallelConfig`` and
    ``DistributedDataParallelConfig``.
    """

    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1
    sequence_parallel: bool = False
    """Shard the activations between tensor-parallel regions along the sequence."""
    use_distributed_optimizer: bool = True
    """Shard optimizer state over data-parallel ranks (Adam only; others replicate it)."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass still runs (GPU)."""
    overlap_param_gather: bool = False
    """Gather parameters while the forward pass already runs (GPU)."""
    bucket_size: int | None = None
    """Parameters in one gradient bucket; absent: megatron-core's choice."""

    def __post_init__(self) -> None:
        for field in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
            if getattr(self, field) < 1:
                raise UserError(f"parallel.{field}={getattr(self, field)} must be at least 1")
        if self.overlap_param_gather and not (
            self.use_distributed_optimizer and self.overlap_grad_reduce
        ):
            raise UserError(
                "parallel.overlap_param_gather=true needs use_distributed_optimizer=true "
                "and overlap_grad_reduce=true"
            )

    @property
    def model_parallel_size(self) -> int:
        """Ranks that together hold one copy of the model."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size

    def data_parallel_size(self, world_size: int) -> int:
        """Copies of the model on ``world_size`` ranks."""
        return world_size // self.model_parallel_size

    def describe(self, world_size: int) -> str:
        """The layout in short, for example ``TP2 PP2 DP1 SP``."""
        text = (
            f"TP{self.tensor_model_parallel_size} PP{self.pipeline_model_parallel_size} "
            f"DP{self.data_parallel_size(world_size)}"
        )
        return text + (" SP" if self.sequence_parallel else "")

    def check(self, model: ModelConfig, seq_length: int, world_size: int, where: str) -> None:
        """Raise :class:`UserError` if ``model`` cannot be cut this way over ``world_size`` ranks.

        ``where`` names the stage in the message.
        """
        tp, pp = self.tensor_model_parallel_size, self.pipeline_model_parallel_size
        if world_size % self.model_parallel_size:
            raise UserError(
                f"{where}: tensor_model_parallel_size={tp} x pipeline_model_parallel_size={pp} "
                f"does not divide the {world_size} ranks of this job"
            )
        cut = {
            "num_attention_heads": model.num_attention_heads,
            "num_query_groups": model.query_groups,
            "ffn_hidden_size": model.ffn_size,
            "padded vocabulary": model.padded_vocab_size,
        }
        for name, size in cut.items():
            if size % tp:
                raise UserError(
                    f"{where}: tensor_model_parallel_size={tp} does not divide {name}={size}"
                )
        if pp > 1 and (model.num_layers == 0 or model.num_layers % pp):
            raise UserError(
                f"{where}: pipeline_model_parallel_size={pp} does not divide "
                f"num_layers={model.num_layers}; each pipeline stage needs the same number of "
                "layers, at least one"
            )
        if self.sequence_parallel and seq_length % tp:
            raise UserError(
                f"{where}: sequence_parallel needs seq_length={seq_length} to be a multiple of "
                f"tensor_model_parallel_size={tp}"
            )
