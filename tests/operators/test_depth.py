"""Depth operators: their published index maps, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_grow.config.errors import UserError
from megatron_grow.operators import DEPTH, depth_operator
from megatron_grow.operators.base import DepthOperator
from megatron_grow.state.axes import Axis, LogicalTensor, Normal, Role
from megatron_grow.state.boxes import full, slices
from megatron_grow.state.maps import FRESH, TensorMap, materialise

WHERE = "stages[1].grow.depth"


def operator(name: str) -> DepthOperator:
    return depth_operator(name, WHERE)


def index(name: str, source: int, target: int) -> list[int]:
    return list(operator(name).layers(source, target).index)


@pytest.mark.parametrize(
    ("name", "source", "target", "layers"),
    [
        ("copying_stack", 4, 6, [0, 1, 2, 3, 0, 1]),
        ("copying_stack", 3, 7, [0, 1, 2, 0, 1, 2, 0]),
        ("copying_inter", 4, 6, [0, 0, 1, 2, 2, 3]),
        ("copying_inter", 3, 6, [0, 0, 1, 1, 2, 2]),
        ("copying_last", 4, 6, [0, 1, 2, 3, 3, 3]),
        ("copying_last", 2, 4, [0, 1, 1, 1]),
        ("random", 0, 3, [FRESH] * 3),
        ("random", 2, 5, [0, 1, FRESH, FRESH, FRESH]),
        ("zero", 1, 3, [0, FRESH, FRESH]),
        ("copying_zero", 2, 4, [0, 0, 1, 1]),
        ("copying_zero", 1, 4, [0, 0, 0, 0]),
        ("copying_zero", 3, 7, [0, 0, 1, 1, 2, 2, 2]),
    ],
)
def test_index_maps(name: str, source: int, target: int, layers: list[int]) -> None:
    assert index(name, source, target) == layers


@pytest.mark.parametrize("target", [18, 36, 58, 72, 116])
def test_interpolation_counts_in_integers(target: int) -> None:
    """In floats ``int(i / (target / 14))`` is off by one somewhere in each of these."""
    layers = index("copying_inter", 14, target)
    assert layers == [i * 14 // target for i in range(target)]
    assert layers != [int(i / (target / 14)) for i in range(target)]


def test_copying_zero_spreads_as_llama_pro() -> None:
    """arXiv 2401.02415: 32 -> 40 puts copies of layers 3, 7, ..., 31 at 4, 9, ..., 39."""
    layers = operator("copying_zero").layers(32, 40)
    originals = layers.first_only().index
    copies = [i for i, source in enumerate(originals) if source == FRESH]
    assert copies == [4, 9, 14, 19, 24, 29, 34, 39]
    assert [layers.index[i] for i in copies] == [3, 7, 11, 15, 19, 23, 27, 31]
    assert [source for source in originals if source != FRESH] == list(range(32))


@pytest.mark.parametrize("name", [name for name in DEPTH if name.startswith("copying")])
@pytest.mark.parametrize(("source", "target"), [(1, 5), (3, 7), (5, 6), (7, 60)])
def test_copies_use_every_layer(name: str, source: int, target: int) -> None:
    layers = index(name, source, target)
    assert len(layers) == target
    assert set(layers) == set(range(source))
    if name != "copying_stack":
        assert layers == sorted(layers)
    if name == "copying_inter":
        counts = np.bincount(layers)
        assert counts.max() - counts.min() <= 1


LAYER, WIDTH = Axis("layer", 4, Role.INDEX), Axis("hidden", 3, Role.PRODUCES)
SOURCE = torch.arange(1.0, 7.0).view(2, 3)


def grown(tensor_map: TensorMap) -> torch.Tensor:
    def read(key: str, box: tuple) -> torch.Tensor:
        assert key == "w"
        return SOURCE[slices(box)]

    return materialise(tensor_map, full(tensor_map.target.shape), read, seed=1)


@pytest.mark.parametrize("ends_branch", [False, True])
def test_zero_and_copying_zero_add_nothing(ends_branch: bool) -> None:
    """``zero`` makes zeros of all new entries, ``copying_zero`` of those that end a branch."""
    tensor = LogicalTensor("w", (LAYER, WIDTH), (1, 1), Normal(1.0), ends_branch=ends_branch)
    first, second, nothing = SOURCE[0], SOURCE[1], torch.zeros(3)
    zero, copying_zero = operator("zero"), operator("copying_zero")
    assert torch.equal(
        grown(zero.weights(tensor, 2)), torch.stack([first, second, nothing, nothing])
    )
    new = (nothing, nothing) if ends_branch else (first, second)
    assert torch.equal(
        grown(copying_zero.weights(tensor, 2)), torch.stack([first, new[0], second, new[1]])
    )
    # Behind zeros no gradient arrives, so new layers carry no moments.
    assert torch.equal(
        grown(copying_zero.gradients(tensor, 2)), torch.stack([first, nothing, second, nothing])
    )


def test_random_keeps_the_source_and_draws_the_rest() -> None:
    tensor = LogicalTensor("w", (LAYER, WIDTH), (1, 1), Normal(0.1))
    made = grown(operator("random").weights(tensor, 2))
    assert torch.equal(made[:2], SOURCE)
    assert len(made[2:].unique()) == 6
    assert made[2:].abs().max() < 0.5


@pytest.mark.parametrize("name", DEPTH)
def test_which_preserve_the_function_is_declared(name: str) -> None:
    assert operator(name).preserves_function == (name in ("zero", "copying_zero"))


@pytest.mark.parametrize("name", DEPTH)
def test_a_source_without_layers(name: str) -> None:
    if name in ("random", "zero"):
        operator(name).check(0, 4, WHERE)
        return
    with pytest.raises(UserError) as error:
        operator(name).check(0, 4, WHERE)
    message = str(error.value)
    assert message.startswith(WHERE) and name in message and "num_layers=0" in message
    assert "random" in message and "\n" not in message


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("randon", [f"{WHERE}='randon'", "copying_stack"]),
        ({"operator": "stack"}, [f"{WHERE}='stack'", "random"]),
        ({}, [f"{WHERE}=None", "random"]),
        ({"operator": "random", "std": 0.1}, [f"{WHERE}.std", "random", "none"]),
    ],
)
def test_mistakes_name_the_field_and_what_is_accepted(spec: str | dict, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        depth_operator(spec, WHERE)
    message = str(error.value)
    assert message.startswith(WHERE) and "\n" not in message
    assert all(part in message for part in parts)


@pytest.mark.parametrize("name", DEPTH)
def test_a_name_and_a_mapping_ask_for_the_same(name: str) -> None:
    assert depth_operator({"operator": name}, WHERE) == depth_operator(name, WHERE)
