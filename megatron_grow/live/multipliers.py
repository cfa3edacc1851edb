"""The factors in a model's function that no module of it knows: hooks multiply by them.

What they act on follows from the logical tensors alone, so it is the same for every architecture,
and what a growth folds into weights is what they multiply (:mod:`~megatron_grow.growth.folding`).
The scale of attention scores is the engine's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from megatron.core.utils import unwrap_model

from megatron_grow.config.model import ModelConfig
from megatron_grow.live.placement import stored_parameters
from megatron_grow.optim.roles import role
from megatron_grow.state.tensors import LogicalTensor


def apply_multipliers(
    chunk: torch.nn.Module, tensors: Mapping[str, LogicalTensor], model: ModelConfig
) -> None:
    """Multiply what a chunk computes as its shape says, for as long as it lives.

    What embeddings give, what the last module of each residual branch gives, and what output layers
    read; nothing is hooked where a factor is 1.

    Args:
        chunk: of a model.
        tensors: of the whole model.
        model: its shape.
    """
    chunk, factors = unwrap_model(chunk), model.multipliers
    owners = {
        id(parameter): module
        for module in chunk.modules()
        for parameter in module.parameters(recurse=False)
    }
    owned = [(owners[id(each.data)], tensors[each.key]) for each in stored_parameters(chunk)]
    heads = {module for module, tensor in owned if role(tensor) == "head"}
    heads |= {*_tied_heads(chunk, tensors)}
    embeddings = {module for module, tensor in owned if role(tensor) == "embedding"} - heads
    branches = {module for module, tensor in owned if tensor.ends_branch}
    for modules, name in ((embeddings, "embedding_multiplier"), (branches, "residual_multiplier")):
        if factors[name] != 1.0:
            for module in modules:
                module.register_forward_hook(partial(_multiply_output, factors[name]))
    if factors["logits_scaling"] != 1.0:
        for module in heads:
            module.register_forward_pre_hook(partial(_divide_input, factors["logits_scaling"]))


def _tied_heads(
    chunk: torch.nn.Module, tensors: Mapping[str, LogicalTensor]
) -> Iterator[torch.nn.Module]:
    """Output layers that have no parameter of their own, or a copy of the embedding."""
    modules = dict(chunk.named_modules())
    for tensor in tensors.values():
        if tensor.tied_as and (head := modules.get(tensor.tied_as.rpartition(".")[0])) is not None:
            yield head


def _multiply_output(factor: float, _: torch.nn.Module, __: tuple, output: Any) -> Any:
    """A value, perhaps with its bias apart."""
    if isinstance(output, tuple):
        return tuple(None if part is None else part * factor for part in output)
    return output * factor


def _divide_input(divisor: float, _: torch.nn.Module, inputs: tuple) -> tuple:
    return (inputs[0] / divisor, *inputs[1:])
