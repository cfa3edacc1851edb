"""The spectral condition."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

from megatron_grow.config.model import ModelConfig
from megatron_grow.optim.roles import fan_in, fan_out, role
from megatron_grow.parametrization.mup import MuP
from megatron_grow.state.axes import Role
from megatron_grow.state.tensors import Init, LogicalTensor, Normal


@dataclass(frozen=True, kw_only=True)
class Spectral(MuP):
    """Matrices begin with a spectral norm of sqrt(fan-out / fan-in), each by its own fans.

    So does every logical matrix: queries, keys and values, a gate and what it gates, the head.
    Embeddings look up: with a fan-in of 1 the residual stream begins at a root mean square of 1. A
    tied table begins as the head, and ``embedding_multiplier`` makes up for it. There is no other
    multiplier, and no factor of depth. Without a base model rates are as the run file says; with
    one they follow the width as under muP, of which this is another form.

    Source: Yang, Simon and Bernstein 2023, "A Spectral Condition for Feature Learning" (arXiv
    2310.17813); init of new layers in Bu 2025 (arXiv 2511.04981).
    """

    needs_base = False

    def factors(self, model: ModelConfig) -> dict[str, float]:
        """Of the embedding, where it is the head."""
        if not model.share_embeddings_and_output_weights:
            return {}
        width = model.hidden_size
        return {"embedding_multiplier": std_of(width, 1) / std_of(model.vocabulary, width)}

    def init(self, tensor: LogicalTensor, model: ModelConfig) -> Init:
        """By the fans of each matrix."""
        if role(tensor) == "vector":
            return tensor.init
        if role(tensor) == "embedding":
            return Normal(std_of(fan_out(tensor), 1) / model.multipliers["embedding_multiplier"])
        first, *others = (std_of(out, fan_in(tensor)) for out in outputs(tensor))
        parts = tuple(std / first for std in (first, *others))
        return Normal(first, parts if len({*parts}) > 1 else ())


def std_of(fan_out: int, fan_in: int) -> float:
    """Standard deviation of a normal matrix whose spectral norm is sqrt(fan_out / fan_in).

    That of a matrix of N(0, std^2) is about std (sqrt(fan_in) + sqrt(fan_out)).
    """
    return sqrt(fan_out / fan_in) / (sqrt(fan_in) + sqrt(fan_out))


def outputs(tensor: LogicalTensor) -> tuple[int, ...]:
    """Rows of each of the matrices that are fused in a tensor; of all, where none are."""
    rows = [axis for axis in tensor.axes if not axis.rule.stacks and axis.role is not Role.CONSUMES]
    fused = next((axis.fuses for axis in rows if axis.fuses), (1,))
    others = prod(axis.size for axis in rows if not axis.fuses)
    return tuple(entries * others for entries in fused)
