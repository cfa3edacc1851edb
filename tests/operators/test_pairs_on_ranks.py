"""Every pair of operators of different axes, between two layouts: the bits of one process."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.growth.in_memory import transfer
from megatron_grow.growth.plan import growth
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.axes import MeshDim
from megatron_grow.state.boxes import Box, full, shape_of, slices
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.materialise import materialise
from megatron_grow.state.piece import Piece
from megatron_grow.state.sharding import held
from megatron_grow.state.tensors import LogicalTensor
from tests.distributed import run_ranks
from tests.growth.algebra import grown_model
from tests.operators.cases import GROWTHS, MODELS, covering

NAN = float("nan")
TP2, PP2 = (2, 1), (1, 2)
BETWEEN = {"GPT-2": (PP2, TP2), "LLaMA": (TP2, PP2)}
"""Tensor- and pipeline-parallel sizes, before and after."""


def boxes(tensor: LogicalTensor, layout: tuple[int, int], rank: int) -> Iterator[Box]:
    """What a rank holds of a tensor; both ends of a pipeline hold what is in no layer."""
    tp, pp = layout
    for layer in range(tensor.shape[0]) if tensor.stacked else (0,):
        if not tensor.stacked or layer * pp // tensor.shape[0] == rank // tp:
            entry = (layer,) if tensor.stacked else ()
            yield held(tensor.axes, entry, {MeshDim.TENSOR: rank % tp}, {MeshDim.TENSOR: tp})


def values(model: ModelConfig) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(tensor.shape, generator=generator)
        for key, tensor in logical_tensors(model).items()
    }


def pieces(
    tensors: dict[str, LogicalTensor], layout: tuple[int, int], whole: dict[str, torch.Tensor]
) -> list[Piece]:
    """What this rank holds; not numbers where there is no ``whole``."""
    return [
        Piece(key, MAIN_PARAM, box, data, True)
        for key, tensor in tensors.items()
        for box in boxes(tensor, layout, dist.get_rank())
        for data in [whole[key][slices(box)].clone() if whole else torch.full(shape_of(box), NAN)]
    ]


def grow_all(kind: str) -> list[str]:
    """On a rank: the growths, and tensors, of which it holds other bits than one process makes."""
    source, whole = MODELS[kind], values(MODELS[kind])
    before, after = BETWEEN[kind]
    had = pieces(logical_tensors(source), before, whole)

    def read(key: str, kind: str, box: Box) -> torch.Tensor:
        return whole[key][slices(box)]

    wrong = []
    for row in covering(kind):
        chosen = {key: GROWTHS[key][name] for key, name in row}
        sizes = {field: size for one in chosen.values() for field, size in one.model.items()}
        grow = GrowSection(**{key: one.spec for key, one in chosen.items()})
        plan = growth(source, grown_model(source, sizes), grow, target_depth=9, seed=3)
        made = pieces(plan.tensors, after, {})
        transfer(plan, had, made)
        for key, tensor in plan.tensors.items():
            truth = materialise(
                plan.map(key, MAIN_PARAM), MAIN_PARAM, full(tensor.shape), read, plan.seed
            )
            mine = [piece for piece in made if piece.key == key]
            if not all(torch.equal(piece.data, truth[slices(piece.box)]) for piece in mine):
                wrong.append(f"{row}: {key}")
    return wrong


def check(kind: str) -> None:
    for wrong in run_ranks(2, grow_all, kind):
        assert wrong == []


def test_from_a_pipeline_to_tensor_parallelism() -> None:
    check("GPT-2")


def test_from_tensor_parallelism_to_a_pipeline() -> None:
    check("LLaMA")
