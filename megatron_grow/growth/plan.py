"""From two shapes and operators to a map for every tensor."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.stages import GrowSection
from megatron_grow.growth.optimizer_state import Policy, moment_map
from megatron_grow.operators import depth_operator
from megatron_grow.state.axes import LogicalTensor, logical_tensors
from megatron_grow.state.live import MAIN_PARAM
from megatron_grow.state.maps import TensorMap, all_fresh, identity


@dataclass(frozen=True)
class Plan:
    """How one training state is made from another."""

    tensors: dict[str, LogicalTensor]
    """Of the target, by key."""
    weights: dict[str, TensorMap]
    gradients: dict[str, TensorMap]
    """How gradients follow from the source's; moments are carried as these."""
    optimizer_state: Policy
    seed: int
    """Decides fresh values."""
    summary: str
    """What grows, for people."""
    preserves_function: bool = False

    def map(self, key: str, kind: str) -> TensorMap:
        """The map of one kind of state of the tensor ``key``."""
        if kind == MAIN_PARAM:
            return self.weights[key]
        return moment_map(self.gradients[key], self.optimizer_state)


def initialisation(model: ModelConfig, target_depth: int, seed: int) -> Plan:
    """The plan that makes a state from nothing: a run's first."""
    tensors = logical_tensors(model, target_depth)
    fresh = {key: all_fresh(tensor) for key, tensor in tensors.items()}
    return Plan(tensors, fresh, fresh, "reset", seed, "fresh weights")


def resharding(model: ModelConfig) -> Plan:
    """The plan that keeps a state as it is, for another layout."""
    tensors = logical_tensors(model)
    same = {key: identity(tensor) for key, tensor in tensors.items()}
    return Plan(tensors, same, same, "carry", 0, "the same model", preserves_function=True)


def growth(
    source: ModelConfig,
    target: ModelConfig,
    grow: GrowSection | None,
    *,
    target_depth: int,
    seed: int,
    where: str = "grow",
) -> Plan:
    """The plan that grows ``source`` into ``target``.

    Args:
        source: the shape before.
        target: the shape after.
        grow: the operators, and what happens to optimizer state; None keeps everything.
        target_depth: the depth that the whole run ends with, for the init of fresh layers.
        seed: decides fresh values.
        where: begins the message of an error, for example ``stages[1].grow``.

    Raises:
        UserError: an unknown operator or option, or an impossible growth.
    """
    if grow is None:
        return resharding(target)
    tensors = logical_tensors(target, target_depth)
    weights = {key: identity(tensor) for key, tensor in tensors.items()}
    gradients = dict(weights)
    summary, preserves = "the same model", True
    if grow.depth is not None:
        operator = depth_operator(grow.depth, f"{where}.depth")
        operator.check(source.num_layers, target.num_layers, f"{where}.depth")
        for key, tensor in tensors.items():
            if tensor.stacked:
                weights[key] = operator.weights(tensor, source.num_layers)
                gradients[key] = operator.gradients(tensor, source.num_layers)
        summary = f"{source.num_layers} -> {target.num_layers} layers by {operator.name}"
        preserves = operator.preserves_function
    return Plan(tensors, weights, gradients, grow.optimizer_state, seed, summary, preserves)
