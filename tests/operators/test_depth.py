"""Depth operators: their published index maps, and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators import OPERATORS
from megatron_grow.operators import operator as make
from megatron_grow.operators.depth.base import DepthOperator
from megatron_grow.state.axes import HIDDEN, LAYER, Axis, Role
from megatron_grow.state.axis_map import FRESH
from megatron_grow.state.axis_maps import Gather
from megatron_grow.state.axis_maps import Identity as Same
from megatron_grow.state.boxes import full, slices
from megatron_grow.state.maps import TensorMap, Term
from megatron_grow.state.materialise import materialise
from megatron_grow.state.tensors import LogicalTensor, Normal

WHERE = "stages[1].grow.depth"
NAMES = list(OPERATORS["depth"].builtin)
NEEDS_LAYERS = [name for name in NAMES if name not in ("random", "zero", "explicit")]


def operator(spec: str | dict) -> DepthOperator:
    made = make("depth", spec, WHERE)
    assert isinstance(made, DepthOperator)
    return made


def index(spec: str | dict, source: int, target: int) -> list[int]:
    gather = operator(spec).layer_map(source, target)
    assert isinstance(gather, Gather)
    return list(gather.index)


def model(layers: int) -> ModelConfig:
    return ModelConfig(num_layers=layers, vocab_size=64)


@pytest.mark.parametrize(
    ("name", "source", "target", "layers"),
    [
        ("copying_stack", 4, 6, [0, 1, 2, 3, 0, 1]),
        ("copying_stack", 3, 7, [0, 1, 2, 0, 1, 2, 0]),
        ({"operator": "copying_stack", "remainder": "top"}, 3, 7, [0, 1, 2, 0, 1, 2, 2]),
        ("copying_inter", 3, 12, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
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
        ("identity", 2, 4, [0, 0, 1, 1]),
        ("llama_pro", 4, 6, [0, 1, 1, 2, 3, 3]),
        ({"operator": "explicit", "layers": [0, 2, FRESH, 1]}, 3, 4, [0, 2, FRESH, 1]),
    ],
)
def test_index_maps(name: str | dict, source: int, target: int, layers: list[int]) -> None:
    operator(name).check(model(source), model(target), WHERE)
    assert index(name, source, target) == layers


@pytest.mark.parametrize("target", [18, 36, 58, 72, 116])
def test_interpolation_counts_in_integers(target: int) -> None:
    """In floats ``int(i / (target / 14))`` is off by one somewhere in each of these."""
    layers = index("copying_inter", 14, target)
    assert layers == [i * 14 // target for i in range(target)]
    assert layers != [int(i / (target / 14)) for i in range(target)]


def test_llama_pro_spacing() -> None:
    """arXiv 2401.02415: 32 -> 40 puts copies of layers 3, 7, ..., 31 at 4, 9, ..., 39."""
    layers = operator("llama_pro").layer_map(32, 40)
    originals = layers.first_only().index
    copies = [i for i, source in enumerate(originals) if source == FRESH]
    assert copies == [4, 9, 14, 19, 24, 29, 34, 39]
    assert [layers.index[i] for i in copies] == [3, 7, 11, 15, 19, 23, 27, 31]
    assert [source for source in originals if source != FRESH] == list(range(32))


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("copying")])
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


LAYERS, WIDTH = Axis(LAYER, 4, Role.INDEX), Axis(HIDDEN, 3, Role.PRODUCES)
SOURCE = torch.arange(1.0, 7.0).view(2, 3)


def grown(spec: str | dict, how: str = "weights", **flags: Any) -> torch.Tensor:
    """Two layers of three values, grown to four."""
    tensor = LogicalTensor("w", (LAYERS, WIDTH), (1, 1), Normal(0.1), **flags)
    (draw,) = getattr(operator(spec), how)(tensor, model(2), model(4))
    tensor_map = TensorMap(tensor, (Term("w", (draw["layer"], Same())),), tensor.init)

    def read(key: str, kind: str, box: tuple) -> torch.Tensor:
        return SOURCE[slices(box)]

    return materialise(tensor_map, "main_param", full(tensor.shape), read, seed=1)


FIRST, SECOND, NOTHING = SOURCE[0], SOURCE[1], torch.zeros(3)


@pytest.mark.parametrize("ends_branch", [False, True])
def test_zero_and_copying_zero_add_nothing(ends_branch: bool) -> None:
    """``zero`` makes zeros of all new entries, ``copying_zero`` of those that end a branch."""
    flags = {"ends_branch": ends_branch}
    assert torch.equal(grown("zero", **flags), torch.stack([FIRST, SECOND, NOTHING, NOTHING]))
    new = (NOTHING, NOTHING) if ends_branch else (FIRST, SECOND)
    assert torch.equal(grown("copying_zero", **flags), torch.stack([FIRST, new[0], SECOND, new[1]]))
    # Behind zeros no gradient arrives, so new layers carry no moments.
    carried = grown("copying_zero", "gradients", **flags)
    assert torch.equal(carried, torch.stack([FIRST, NOTHING, SECOND, NOTHING]))


def test_identity_zeroes_norms() -> None:
    assert torch.equal(grown("identity"), torch.stack([FIRST, FIRST, SECOND, SECOND]))
    of_norm = grown("identity", norm="gain")
    assert torch.equal(of_norm, torch.stack([FIRST, NOTHING, SECOND, NOTHING]))


def test_random_keeps_the_source_and_draws_the_rest() -> None:
    made = grown("random")
    assert torch.equal(made[:2], SOURCE)
    assert len(made[2:].unique()) == 6
    assert made[2:].abs().max() < 0.5


def test_mix_interpolates_or_follows_its_matrix() -> None:
    third = (2 * FIRST + SECOND) / 3, (FIRST + 2 * SECOND) / 3
    assert torch.allclose(grown("mix"), torch.stack([FIRST, *third, SECOND]))
    matrix = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.5, -1.0]]
    made = grown({"operator": "mix", "matrix": matrix})
    assert torch.equal(made, torch.tensor(matrix) @ SOURCE)


@pytest.mark.parametrize("name", NAMES)
def test_which_preserve_the_function_is_declared(name: str) -> None:
    preserving = ("zero", "copying_zero", "identity", "llama_pro", "unshare")
    assert (operator(name).caveat(model(2), model(4)) is None) == (name in preserving)


@pytest.mark.parametrize(
    ("options", "preserves"),
    [
        ({"layers": [0, 0, 1, -1], "zero": [1, 3]}, True),
        ({"layers": [0, 0, 1, -1], "zero": [0, 3]}, True),
        ({"layers": [0, 0, 1, -1], "zero": [1, 3], "scale": [1.0, 2.0, 1.0, 1.0]}, True),
        ({"layers": [0, 0, 1, -1], "zero": [1, 3], "scale": [1.0, 1.0, 0.5, 1.0]}, False),
        ({"layers": [0, 0, 1, -1], "zero": [3]}, False),
        ({"layers": [1, 0, 1, 0], "zero": [2, 3]}, False),
    ],
)
def test_explicit_says_whether_it_preserves_the_function(options: dict, preserves: bool) -> None:
    made = operator({"operator": "explicit", **options})
    assert (made.caveat(model(2), model(4)) is None) == preserves


@pytest.mark.parametrize("name", NEEDS_LAYERS)
def test_copies_need_a_source_with_layers(name: str) -> None:
    with pytest.raises(UserError) as error:
        operator(name).check(model(0), model(4), WHERE)
    message = str(error.value)
    assert message.startswith(WHERE) and name in message and "num_layers=0" in message
    assert "random" in message and "\n" not in message


@pytest.mark.parametrize(
    ("spec", "layers", "parts"),
    [
        ("llama_pro", (6, 10), ["4 new layers", "6", "7, 8, 9, 12"]),
        ({"operator": "copying_stack", "whole_factor": True}, (4, 10), ["4 -> 10", "8 or 12"]),
        ({"operator": "explicit", "layers": [0, 1]}, (2, 3), [".layers", "2", "num_layers=3"]),
        ({"operator": "explicit", "layers": [0, 1, 2]}, (2, 3), ["layer 2", "0 to 1"]),
        ({"operator": "explicit", "layers": [0, 1, 1], "zero": [3]}, (2, 3), [".zero", "0 to 2"]),
        (
            {"operator": "explicit", "layers": [0, 1, 1], "scale": [1.0]},
            (2, 3),
            [".scale", "1 numbers", "num_layers=3"],
        ),
        (
            {"operator": "explicit", "layers": [0, 1, 1], "scale": [1.0, 1.0, float("inf")]},
            (2, 3),
            [".scale", "inf", "finite"],
        ),
        ({"operator": "mix", "matrix": [[1.0]]}, (2, 3), [".matrix", "3 rows", "2 numbers"]),
    ],
)
def test_impossible_growths_say_what_is_possible(
    spec: str | dict, layers: tuple[int, int], parts: list[str]
) -> None:
    before, after = layers
    with pytest.raises(UserError) as error:
        operator(spec).check(model(before), model(after), WHERE)
    message = str(error.value)
    assert message.startswith(WHERE) and "\n" not in message
    assert all(part in message for part in parts)


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("randon", [f"{WHERE}='randon'", "copying_stack"]),
        ({"operator": "stack"}, [f"{WHERE}.operator='stack'", "random"]),
        ({}, [f"{WHERE}.operator=None", "random"]),
        ({"operator": "random", "std": 0.1}, [f"{WHERE}.std", "random", "none"]),
        ({"operator": "explicit", "layers": "all"}, [WHERE, "layers"]),
    ],
)
def test_mistakes_name_the_field_and_what_is_accepted(spec: str | dict, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        operator(spec)
    message = str(error.value)
    assert message.startswith(WHERE) and "\n" not in message
    assert all(part in message for part in parts)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_and_a_mapping_ask_for_the_same(name: str) -> None:
    assert operator({"operator": name}) == operator(name)
