"""Whether a model is what the tensors of its architecture say."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer

from megatron_grow.inputs.errors import UserError
from megatron_grow.live.placement import stored_parameters
from megatron_grow.parallel import process_groups
from megatron_grow.parallel.agreement import reduced, together
from megatron_grow.state.boxes import volume
from megatron_grow.state.sharding import held, shape_on_rank
from megatron_grow.state.tensors import LogicalTensor


def check_model(
    chunks: Sequence[torch.nn.Module], tensors: dict[str, LogicalTensor], architecture: str
) -> None:
    """Compare this rank's chunks of a model with ``tensors``; every rank takes part.

    An architecture says both. Where they differ, some values would never be initialised, or would
    be left out of growths and checkpoints.

    Raises:
        UserError: on all ranks, the first difference.
    """
    where = f"model.architecture={architecture}"
    here = together(lambda: _volumes(chunks, tensors, where))
    for tensor, held_by_all in zip(tensors.values(), reduced(here, "sum").tolist(), strict=True):
        if held_by_all != prod(tensor.shape):
            raise UserError(
                f"{where}: by its tensors() {tensor.key} has {prod(tensor.shape):,} values; in its "
                f"model, replicas counted once, all ranks together have {held_by_all:,}"
            )


def check_fp8(chunks: Sequence[torch.nn.Module], fp8: str | None, architecture: str) -> None:
    """Whether what computes in fp8 is there; every rank takes part.

    Only Transformer Engine's layers do. An architecture may build others whatever it was asked for.

    Raises:
        UserError: on all ranks, a layer would ignore ``fp8``.
    """
    if fp8 is not None:
        together(lambda: _find_fp8(chunks, fp8, architecture))


def _find_fp8(chunks: Sequence[torch.nn.Module], fp8: str, architecture: str) -> None:
    for layer in (part for chunk in chunks for part in chunk.modules()):
        if isinstance(layer, TransformerLayer) and not any(map(_of_engine, layer.modules())):
            raise UserError(
                f"train.fp8={fp8}: model.architecture={architecture} builds layers of "
                "megatron-core, which would ignore it, under transformer_impl: transformer_engine; "
                "set train.fp8: null, or an architecture whose layers are Transformer Engine's"
            )


def _of_engine(module: torch.nn.Module) -> bool:
    return any(base.__module__.startswith("transformer_engine") for base in type(module).__mro__)


def _volumes(
    chunks: Sequence[torch.nn.Module], tensors: dict[str, LogicalTensor], where: str
) -> torch.Tensor:
    """How many values of each tensor this rank has, without those of a replica."""
    mesh, place = process_groups.mesh(), process_groups.place()
    volumes = dict.fromkeys(tensors, 0)
    for chunk in chunks:
        stored = list(stored_parameters(chunk))
        known = {id(each.data) for each in stored}
        for name, parameter in chunk.named_parameters():
            if id(parameter) not in known:
                raise UserError(f"{where}: its model's sharded_state_dict() lacks {name}")
        for each in stored:
            tensor = tensors.get(each.key)
            if tensor is None:
                raise UserError(f"{where}: its tensors() lacks {each.key}, which its model has")
            if tensor.stacked != (each.layer is not None):
                said, has = (
                    ("each layer", "the model") if tensor.stacked else ("the model", "each layer")
                )
                raise UserError(
                    f"{where}: by its tensors() {said} has {each.key}; in its model {has} has it"
                )
            if each.layer is not None and not tensor.is_in(each.layer):
                raise UserError(
                    f"{where}: by its tensors() {each.key} is of layers {[*tensor.with_it]}; its "
                    f"model has it in layer {each.layer}"
                )
            entry = each.entry(tensor)
            shape = tensor.grouped(shape_on_rank(tensor.axes, mesh))[len(entry) :]
            if each.data.shape != shape:
                raise UserError(
                    f"{where}: by its tensors() a parameter of {each.key} is {shape} on a rank; "
                    f"in its model it is {tuple(each.data.shape)}"
                )
            if each.primary(tensor) and process_groups.replica(tensor.of_experts)[0] == 0:
                volumes[each.key] += volume(held(tensor.axes, entry, place, mesh))
    return torch.tensor(list(volumes.values()))
