"""Growth from and to models whose layers share their parameters: weights, moments, refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_grow.config.grow import GrowSection, check_growth
from megatron_grow.config.model import ModelConfig
from megatron_grow.growth.plan import growth
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.kinds import MAIN_PARAM
from tests.growth.algebra import GPT2, Weights, applied, weights_of

KEY = "decoder.layers.mlp.linear_fc2.weight"
STATES = {MAIN_PARAM: 0, "exp_avg": 1, "exp_avg_sq": 2}


def model(layers: int, sharing: str | list[int] | None = None, **more: Any) -> ModelConfig:
    return replace(GPT2, num_layers=layers, layer_sharing=sharing, **more)


def grown(
    before: ModelConfig, after: ModelConfig, depth: Any, kind: str, **more: Any
) -> tuple[Weights, Weights]:
    """One kind of state before and after."""
    grow, values = GrowSection(depth=depth, **more), weights_of(before)
    check_growth(before, after, grow, "stages[1]")
    plan = growth(before, after, grow, target_depth=after.num_layers, seed=1)
    return values, applied(plan, before, values, kind)


# From, to, operator; of each unique layer of the target the source's, and its part of a gradient:
# its number of layers / that of the source's. Written by hand.
CASES: dict[str, tuple[ModelConfig, ModelConfig, Any, list[int], list[float]]] = {
    "all": (model(4, "1x4"), model(4), "unshare", [0, 0, 0, 0], [1 / 4] * 4),
    "units": (model(4, "2x2"), model(4), "unshare", [0, 1, 0, 1], [1 / 2] * 4),
    "some": (
        model(4, [0, 0, 0, 1]),
        model(4, [0, 0, 1, 2]),
        "unshare",
        [0, 0, 1],
        [2 / 3, 1 / 3, 1.0],
    ),
    "more of the same": (model(2, "1x2"), model(4, "1x4"), "copying_stack", [0], [2.0]),
    "units stacked": (model(4, "2x2"), model(8, "2x4"), "copying_stack", [0, 1], [2.0, 2.0]),
    "stacked and shared": (model(2), model(4, "2x2"), "copying_stack", [0, 1], [2.0, 2.0]),
    "repeated in place": (model(2), model(4, [0, 0, 1, 1]), "copying_inter", [0, 1], [2.0, 2.0]),
    "stacked and unshared": (model(2, "1x2"), model(4), "copying_stack", [0] * 4, [1 / 2] * 4),
}


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("name", CASES)
def test_layers_and_their_part_of_the_moments(name: str, kind: str) -> None:
    before, after, depth, sources, parts = CASES[name]
    source, target = grown(before, after, depth, kind)
    for key, values in source.items():
        expected = values
        if ".layers." in key:
            factors = torch.tensor(parts, dtype=torch.float64) ** STATES[kind]
            expected = values[sources] * factors.view(-1, *[1] * (values.dim() - 1))
        assert torch.allclose(target[key], expected, rtol=1e-15, atol=0), key


def test_the_part_is_the_mean_that_autograd_gives_a_layer() -> None:
    """A shared gradient is the sum of those of its layers, and so L times their mean."""
    before, after = model(4, [0, 0, 0, 1]), model(4, [0, 0, 1, 2])
    key = "decoder.layers.self_attention.linear_proj.weight"
    values = weights_of(before)
    tied = values[key].clone().requires_grad_()
    apart = [values[key][unique].clone().requires_grad_() for unique in before.sharing]
    for weights in ([tied[unique] for unique in before.sharing], apart):
        rows, columns = tied.shape[1:]
        x = torch.linspace(-1, 1, rows, dtype=torch.float64)
        for weight in weights:
            x = x + torch.tanh(weight @ x.repeat(columns // rows))
        x.square().sum().backward()
    gradients = torch.stack([weight.grad for weight in apart])
    mean = gradients[:3].mean(0)
    assert torch.allclose(tied.grad[0], 3 * mean, rtol=1e-12)
    plan = growth(before, after, GrowSection(depth="unshare"), target_depth=4, seed=1)
    # Two layers stay one: they expect the gradients of two.
    expected = torch.stack([2 * mean, mean, gradients[3]])
    for kind, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
        made = applied(plan, before, values | {key: tied.grad**power}, kind)
        assert torch.allclose(made[key], expected**power, rtol=1e-12), kind


def test_fresh_layers_share() -> None:
    """Two of the source, and behind them two that are one."""
    before, after = model(2, "1x2"), model(4, [0, 0, 1, 1])
    source, target = grown(before, after, "random", MAIN_PARAM)
    assert torch.equal(target[KEY][0], source[KEY][0]) and target[KEY].shape[0] == 2
    assert 0 < target[KEY][1].std() < 0.1
    source, target = grown(before, after, "random", "exp_avg")
    assert torch.equal(target[KEY][0], source[KEY][0]) and not target[KEY][1].any()


def test_layers_that_add_nothing_share() -> None:
    before, after = model(2, "1x2"), model(4, [0, 0, 1, 1])
    depth = {"operator": "explicit", "layers": [0, 1, 0, 1], "zero": [2, 3]}
    source, target = grown(before, after, depth, MAIN_PARAM)
    assert torch.equal(target[KEY][0], source[KEY][0]) and not target[KEY][1].any()
    inside = KEY.replace("fc2", "fc1")
    assert torch.equal(target[inside], source[inside][[0, 0]])


def test_from_no_layers() -> None:
    _, target = grown(model(0), model(4, "1x4"), "random", MAIN_PARAM)
    assert target[KEY].shape[0] == 1


def test_a_mix_of_what_is_one_adds_up() -> None:
    matrix = [[0.5, 0.25], [0.5, 0.25], [1.0, 0.0], [1.0, 0.0]]
    mix = {"operator": "mix", "matrix": matrix}
    before, after = model(2, "1x2"), model(4, [0, 0, 1, 1])
    for kind, power in STATES.items():
        source, target = grown(before, after, mix, kind)
        # Two layers of the target, each with these weights of half of the source's gradient.
        weights = (0.75, 1.0) if power == 0 else (0.75**power, 1.0)
        expected = torch.stack([source[KEY][0] * weight for weight in weights])
        assert torch.allclose(target[KEY], expected, rtol=1e-15)


def test_originals_alone_keep_moments() -> None:
    source, target = grown(
        model(4, "1x4"), model(4), "unshare", "exp_avg", optimizer_state="carry_old"
    )
    assert torch.equal(target[KEY][0], source[KEY][0] / 4) and not target[KEY][1:].any()


def test_a_width_growth_leaves_shared_layers_shared() -> None:
    before, after = model(4, "2x2"), model(4, "2x2", ffn_hidden_size=2 * GPT2.ffn_size)
    plan = growth(before, after, GrowSection(ffn="fpi"), target_depth=4, seed=1)
    assert plan.tensors[KEY].shape[0] == 2
    made = applied(plan, before, values := weights_of(before), "exp_avg")
    assert torch.equal(made[KEY][..., : GPT2.ffn_size], values[KEY])


REFUSED: dict[str, tuple[ModelConfig, ModelConfig, Any, str]] = {
    "what is not one": (
        model(4, [0, 0, 1, 1]),
        model(4, "1x4"),
        "unshare",
        "stages[1].grow.depth: by model.layer_sharing=1x4 layers 0 and 2 are one, but they are two "
        "in the stage before ([0, 0, 1, 1]); unshare only splits layers that are one",
    ),
    "a copy and a fresh layer": (
        model(2, "1x2"),
        model(4, "1x4"),
        "random",
        "stages[1].grow: layers 0 and 2 share their parameters in the target "
        "(model.layer_sharing), but would be grown in different ways; let layers share no more "
        "than what the growth makes alike, or grow by an operator that makes these layers alike",
    ),
    "copies that add nothing": (model(2, "1x2"), model(4, "1x4"), "copying_zero", "layers 0 and 1"),
    "a mix": (model(2), model(4, "1x4"), "mix", "layers 0 and 1"),
    "other factors": (
        model(2, "1x2"),
        model(4, "1x4"),
        {"operator": "explicit", "layers": [0, 1, 0, 1], "scale": [1.0, 1.0, 0.5, 0.5]},
        "layers 0 and 2",
    ),
    "another order": (model(2), model(4, [0, 0, 1, 1]), "copying_stack", "layers 0 and 1"),
    "another depth": (
        model(2, "1x2"),
        model(4),
        "unshare",
        "stages[1].grow.depth: unshare keeps num_layers, which goes from 2 to 4; give it a stage "
        "of its own, or take an operator that copies layers",
    ),
    "the same depth": (
        model(4, "1x4"),
        model(4),
        "copying_stack",
        "stages[1].grow.depth: copying_stack grows num_layers, which stays 4; what leads from "
        "model.layer_sharing=1x4 to null is unshare",
    ),
    "nothing to do": (model(4, "1x4"), model(4, [0, 0, 0, 0]), "unshare", "has nothing to do"),
    "no operator": (
        model(4, "1x4"),
        model(4),
        None,
        "stages[1].grow.depth is missing: model.layer_sharing goes from 1x4 to null, for example "
        "by grow: {depth: unshare}",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    before, after, depth, message = REFUSED[name]
    grow = GrowSection(depth=depth)
    with pytest.raises(UserError) as caught:
        check_growth(before, after, grow, "stages[1]")
        growth(before, after, grow, target_depth=4, seed=1, where="stages[1].grow")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_rows_of_the_layer_above_are_not_those_of_a_repetition() -> None:
    """In 2x2, layer 1 is below layer 2, and layer 3 below none."""
    before, after = model(4, "2x2"), model(4, "2x2", ffn_hidden_size=2 * GPT2.ffn_size)
    with pytest.raises(UserError, match="layers 1 and 3 share their parameters in the target"):
        growth(before, after, GrowSection(ffn="aki"), target_depth=4, seed=1)


def test_the_tensors() -> None:
    tensors, spelled = logical_tensors(model(4, "2x2")), logical_tensors(model(4))
    for key, tensor in tensors.items():
        layers = ".layers." in key
        assert tensor.shape == ((2, *spelled[key].shape[1:]) if layers else spelled[key].shape)
        assert tensor.init == spelled[key].init  # residual outputs by the depth of all layers
