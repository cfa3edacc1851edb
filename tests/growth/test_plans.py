"""Plans: published factors, groups, tokens, positions, order, policies and mistakes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.config.stages import StageSection, changed_model, resolve_stages
from megatron_grow.growth.plan import growth
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import Count
from megatron_grow.model.gpt.architecture import GPT
from megatron_grow.operators import operator
from megatron_grow.state.axes import HIDDEN, Axis, AxisRule, Role
from megatron_grow.state.axis_maps import Gather
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.tensors import LogicalTensor, Normal
from tests.growth.algebra import (
    GPT2,
    LLAMA,
    UNTIED,
    applied,
    grown_model,
    loss_and_gradients,
    weights_of,
)

# Published ratios and factors.


def ratios(source: ModelConfig, target: ModelConfig, grow: dict[str, Any]) -> dict[str, set[float]]:
    """What carried first moments are multiplied by, tensor by tensor; zeros left out."""
    plan = growth(source, target, GrowSection(**grow), target_depth=9, seed=3)
    ones = {key: torch.ones_like(value) for key, value in weights_of(source).items()}
    carried = applied(plan, source, ones, "exp_avg")
    return {key: set(value.unique().tolist()) - {0.0} for key, value in carried.items()}


def test_published_gradient_ratios() -> None:
    """HyperCloning x2: 0.5, and 1 for the head; block-diagonal x2: 0.5, and 1 for the last norm."""
    twice = {"hidden_size": 16, "groups": 2.0, "ffn_hidden_size": 24}
    for key, found in ratios(
        UNTIED, grown_model(UNTIED, twice), {"recipe": "hypercloning"}
    ).items():
        assert found == ({1.0} if key == "output_layer.weight" else {0.5}), key
    for key, found in ratios(GPT2, grown_model(GPT2, twice), {"width": "block_diagonal"}).items():
        assert found == ({1.0} if "final_layernorm" in key else {0.5}), key


@pytest.mark.parametrize(
    ("growth_of_width", "both", "none"),
    [
        (0.25, 0.7559, 0.8944),
        (0.5, 0.6325, 0.8165),
        (1, 0.5, 0.7071),
        (2, 0.3333, 0.5774),
        (3, 0.25, 0.5),
    ],
)
def test_sparkling_factors(growth_of_width: float, both: float, none: float) -> None:
    """arXiv 2602.02472: what consumers are multiplied by, for a relative growth of c."""
    for copy, factor in (("both", both), ("none", none)):
        target = replace(GPT2, hidden_size=int(8 * (1 + growth_of_width)))
        sizes = {HIDDEN: (8, target.hidden_size)}
        made = operator("width", {"operator": "sparkling", "copy": copy}, "grow.width", sizes)
        ((expansion,),) = (e.values() for e in made.expansions(GPT2, target))  # type: ignore[attr-defined]
        assert list(expansion.share) == pytest.approx([factor] * len(expansion.share), abs=5e-5)


def test_an_axis_of_ones_own_grows_by_the_operators_of_its_key() -> None:
    """An architecture's row says that ``ffn`` grows it; copies share what they feed."""
    adapter = AxisRule("adapter", grown_by="ffn", sized_by="rank")
    made = operator("ffn", "hypercloning", "grow.ffn", {adapter: (2, 4)})
    down = LogicalTensor("down", (Axis(adapter, 4, Role.PRODUCES),), (1,), Normal(0.1))
    up = replace(down, axes=(Axis(adapter, 4, Role.CONSUMES),))
    assert made.weights(down, GPT2, GPT2) == [{"adapter": Gather((0, 1, 0, 1))}]
    assert made.weights(up, GPT2, GPT2) == [{"adapter": Gather((0, 1, 0, 1), (0.5,) * 4)}]
    assert made.axes(GPT2, GPT2) == {"adapter"}


@dataclass(frozen=True)
class Adapted(GPT):
    """One with a tensor along an axis of its own, as wide as an option says."""

    changing: ClassVar = frozenset({"rank"})
    rank: Count = 2
    key: str = "ffn"

    def tensors(self, model: ModelConfig, target_depth: int | None) -> dict[str, LogicalTensor]:
        axis = Axis(AxisRule("rank", grown_by=self.key), self.rank, Role.PRODUCES)
        return super().tensors(model, target_depth) | {
            "adapter": LogicalTensor("adapter", (axis,), (1,), Normal(0.1))
        }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"here\.ffn is missing: rank goes from 2 to 4"),
        ({"key": "adapters"}, r"here: rank goes from 2 to 4; no operator grows that"),
    ],
)
def test_an_axis_of_ones_own_must_be_grown(options: dict[str, str], message: str) -> None:
    small, large = (
        replace(GPT2, architecture=f"{__name__}:Adapted", options={"rank": rank, **options})
        for rank in (2, 4)
    )
    with pytest.raises(UserError, match=message):
        growth(small, large, None, target_depth=2, seed=1, where="here")


# Groups, vocabulary, positions.


def test_regrouping_to_single_heads_and_back() -> None:
    """GQA to MHA keeps the function; back, the copies are equal, so their average is too."""
    many = replace(LLAMA, num_query_groups=4)
    weights = weights_of(LLAMA)
    losses, _ = loss_and_gradients(LLAMA, weights)
    there = growth(LLAMA, many, GrowSection(heads="regroup"), target_depth=2, seed=1)
    assert there.caveats == ()
    apart = applied(there, LLAMA, weights, MAIN_PARAM)
    assert torch.allclose(loss_and_gradients(many, apart)[0], losses, rtol=1e-12, atol=0)
    back = growth(many, LLAMA, GrowSection(heads="regroup"), target_depth=2, seed=1)
    assert any("averaged" in caveat for caveat in back.caveats)
    for key, value in applied(back, many, apart, MAIN_PARAM).items():
        assert torch.allclose(value, weights[key], rtol=1e-14, atol=0), key


@pytest.mark.parametrize("copies", [2, 3, 6, 7])
def test_the_mean_of_equal_groups_is_each_of_them(copies: int) -> None:
    """To the bit, in fp32."""
    few = replace(LLAMA, num_attention_heads=2 * copies)
    many = replace(few, num_query_groups=2 * copies)
    values = {key: value.float() for key, value in weights_of(few).items()}
    known = values
    for source, target in ((few, many), (many, few)):
        plan = growth(source, target, GrowSection(heads="regroup"), target_depth=2, seed=1)
        values = applied(plan, source, values, MAIN_PARAM, torch.float32)
    assert all(torch.equal(values[key], known[key]) for key in known)


def test_key_value_groups_follow_the_heads_where_they_were_as_many() -> None:
    """An imported multi-head model names both fields."""
    imported = replace(GPT2, num_query_groups=4)
    assert changed_model(imported, {"num_attention_heads": 8}, "model").query_groups == 8
    assert changed_model(imported, {"num_attention_heads": 2}, "model").query_groups == 2
    said = changed_model(imported, {"num_attention_heads": 8, "num_query_groups": 4}, "model")
    assert said.query_groups == 4
    # Grouped queries stay in as many groups.
    assert changed_model(LLAMA, {"num_attention_heads": 8}, "model").query_groups == 2
    small, _ = resolve_stages(
        [
            StageSection(until=1, model={"num_attention_heads": 2}),
            StageSection(grow=GrowSection(heads="fpi")),
        ],
        imported,
        ParallelConfig(),
        TrainSection(train_iters=2),
    )
    assert small.model.query_groups == 2


def test_a_plan_says_that_multi_head_attention_becomes_grouped() -> None:
    more = replace(GPT2, num_attention_heads=8)
    for target, told in ((replace(more, num_query_groups=4), True), (more, False)):
        plan = growth(GPT2, target, GrowSection(heads="fpi"), target_depth=2, seed=1)
        expected = "multi-head attention becomes grouped: 2 query heads share each key and value"
        assert (expected in plan.summary) == told
    grouped = replace(LLAMA, num_attention_heads=8)
    plan = growth(LLAMA, grouped, GrowSection(heads="fpi"), target_depth=2, seed=1)
    assert "becomes grouped" not in plan.summary


def test_new_tokens() -> None:
    """Known rows stay; new ones are drawn, the mean of the known, or those that a list names."""
    target = replace(GPT2, vocab_size=45)
    weights = weights_of(GPT2)
    key = "embedding.word_embeddings.weight"
    known = weights[key][:40]
    specs = {"random": "random", "mean": "mean", "mapping": {"operator": "mapping"}}
    specs["mapping"] = {"operator": "mapping", "tokens": [*range(1, 40), *[-1] * 5, 7]}
    for name, spec in specs.items():
        plan = growth(GPT2, target, GrowSection(vocab=spec), target_depth=2, seed=1)
        rows = applied(plan, GPT2, weights, MAIN_PARAM)[key]
        assert rows.shape == (45, 8)
        if name == "mapping":
            assert torch.equal(rows[:39], known[1:]) and torch.equal(rows[44], known[7])
            assert rows[39:44].abs().max() < 0.2  # fresh: the init's deviation is 0.02
            continue
        assert torch.equal(rows[:40], known)
        mean = known.mean(0).expand(5, -1)
        assert torch.allclose(rows[40:45], mean, rtol=1e-12) == (name == "mean")


def test_new_positions() -> None:
    target = replace(GPT2, max_position_embeddings=15)
    weights = weights_of(GPT2)
    key = "embedding.position_embeddings.weight"
    known = weights[key]
    for name in ("copy", "random", "interpolate"):
        plan = growth(GPT2, target, GrowSection(positions=name), target_depth=2, seed=1)
        rows = applied(plan, GPT2, weights, MAIN_PARAM)[key]
        if name == "interpolate":
            assert torch.allclose(rows[::2], known)
            assert torch.allclose(rows[1::2], (known[1:] + known[:-1]) / 2)
        else:
            assert torch.equal(rows[:8], known)
            assert torch.equal(rows[8:], known[:7]) == (name == "copy")


# Order, policies, mistakes.


def test_operators_commute() -> None:
    """One growth along four axes has the same bits as four growths, in any order."""
    steps: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"depth": "copying_inter"}, {"num_layers": 5}),
        ({"width": "hypercloning"}, {"hidden_size": 16}),
        ({"heads": {"operator": "fpi", "map": "cyclic"}}, {"groups": 8}),
        ({"ffn": "fpi"}, {"ffn_hidden_size": 19}),
    ]
    grow = {name: spec for grows, _ in steps for name, spec in grows.items()}
    sizes = {name: size for _, changes in steps for name, size in changes.items()}
    weights = weights_of(GPT2)
    target = grown_model(GPT2, sizes)
    together = growth(GPT2, target, GrowSection(**grow), target_depth=5, seed=3)
    for kind in (MAIN_PARAM, "exp_avg", "exp_avg_sq"):
        at_once = applied(together, GPT2, weights, kind)
        for order in (steps, steps[::-1], [steps[i] for i in (2, 0, 3, 1)]):
            model, values = GPT2, weights
            for grows, changes in order:
                after = grown_model(model, changes)
                plan = growth(model, after, GrowSection(**grows), target_depth=5, seed=3)
                model, values = after, applied(plan, model, values, kind)
            for key, value in at_once.items():
                assert torch.equal(values[key], value), (kind, key)


def test_carry_old_keeps_originals_alone() -> None:
    """Every entry of the source's moments is in the target once, at an original's place."""
    sizes = {"num_layers": 4, "hidden_size": 16, "groups": 2.0, "ffn_hidden_size": 24}
    cases = [
        ({"recipe": "hypercloning", "depth": "copying_stack"}, sizes),
        ({"width": "block_diagonal", "depth": "copying_inter"}, sizes),
    ]
    for grow, changes in cases:
        target = grown_model(GPT2, changes)
        section = GrowSection(**grow, optimizer_state="carry_old")
        plan = growth(GPT2, target, section, target_depth=5, seed=3)
        moments = weights_of(GPT2, seed=1)
        carried = applied(plan, GPT2, moments, "exp_avg")
        for key, value in moments.items():
            assert (carried[key] != 0).sum() == value.numel(), key


MISTAKES = {
    "a factor that is none": (
        {"width": "hypercloning"},
        {"hidden_size": 12},
        ["grow.width", "hypercloning", "hidden", "8 -> 12", "8 or 16"],
    ),
    "a key that is missing": (
        {"ffn": "fpi"},
        {"hidden_size": 16, "ffn_hidden_size": 24},
        ["grow.width is missing", "hidden_size", "8 to 16"],
    ),
    "nothing to do": ({"ffn": "fpi"}, {}, ["grow.ffn", "nothing to do"]),
    "less": ({"ffn": "fpi"}, {"ffn_hidden_size": 8}, ["grow.ffn", "12 to 8"]),
    "half of block-diagonal": (
        {"width": "block_diagonal"},
        {"hidden_size": 16, "groups": 2.0},
        ["grow.width", "ffn_hidden_size", "24"],
    ),
    "a head's size": (
        {"heads": "fpi"},
        {"kv_channels": 8, "groups": 8},
        ["grow.heads", "4", "8", "kv_channels"],
    ),
    "groups that do not divide": (
        {"heads": "regroup"},
        {"groups": 3, "num_attention_heads": 12},
        ["grow.heads", "regroup"],
    ),
    "fewer tokens": ({"vocab": "mean"}, {"vocab_size": 39}, ["grow.vocab", "40", "39"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    grow, changes, parts = MISTAKES[name]
    changes = dict(changes)
    heads = {k: changes.pop(k) for k in ("num_attention_heads",) if k in changes}
    target = replace(grown_model(GPT2, changes), **heads)
    with pytest.raises(UserError) as error:
        growth(GPT2, target, GrowSection(**grow), target_depth=2, seed=1)
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message
