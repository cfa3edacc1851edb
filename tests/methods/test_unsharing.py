"""When shared layers part, from literal series of correlations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.layer_sharing import unique_layers
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.growth.plan import initialisation
from megatron_grow.inputs.errors import AgreedError, UserError
from megatron_grow.methods import methods_of
from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.methods.end_sharing import EndSharing
from megatron_grow.methods.split_sharing import SplitSharing, split
from tests.toy import MODEL, run_config

EVERY = 10


def run(model: dict[str, Any], method: Any, until: Any) -> RunConfig:
    """A stage with a method, and one that is grown out of it."""
    return run_config(
        StageSection(until=until, methods=[method], model=model),
        StageSection(grow=GrowSection(depth="copying_stack")),
        train_iters=200,
    )


CONFIG = run({}, "end_sharing", {"at_most": 190})


class Live:
    """A stage of four layers whose gradients are known in advance."""

    def __init__(self, rows: list[dict[tuple[int, int], float]], units: str) -> None:
        model = SimpleNamespace(num_layers=4, sharing=unique_layers(units, 4))
        self.stage = SimpleNamespace(model=model, index=0)
        self._rows = iter(rows)
        self.groups: list[list[list[int]]] = []
        self.scaled: list[tuple[list[int], float]] = []

    def gradient_correlations(self, pairs: list[tuple[int, int]]) -> list[float]:
        known = next(self._rows)
        return [known[pair] for pair in pairs]

    def differing_layers(self, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        return []

    def share_layers(self, groups: list[list[int]], *, copy_first: bool = False) -> None:
        assert copy_first == (not self.groups)
        self.groups.append(groups)

    def scale_moments(self, layers: list[int], factor: float) -> None:
        self.scaled.append((layers, factor))


def follow(
    method: TrainingMethod, live: Live, first: int, last: int, skipped: Sequence[int] = ()
) -> Context:
    """Steps of a stage; stops where the method ends it."""
    ctx = Context(CONFIG, [], live, None, first)  # type: ignore[arg-type]
    method.on_stage_start(ctx)
    while ctx.step < last and ctx.end_reason is None:
        ctx.next_step()
        method.before_sharing(ctx)
        ctx.updated = ctx.step not in skipped
        method.after_step(ctx)
    return ctx


def series(*rows: tuple[float, float, float]) -> list[dict[tuple[int, int], float]]:
    return [dict(zip([(0, 1), (1, 2), (2, 3)], row, strict=True)) for row in rows]


HIGH, ONE_LOW, LOW, AT = (0.9, 0.8, 0.7), (0.1, 0.8, 0.7), (0.4, 0.7, -0.2), (0.5, 0.5, 0.1)
"""Two of three are most; what is at rho is not below it."""
ENDS = {
    "at once": ([LOW, LOW, LOW], (), 30),
    "running": ([LOW, LOW, HIGH, LOW, LOW, LOW], (), 60),
    "most pairs": ([LOW, LOW, ONE_LOW, LOW, LOW, LOW], (), 60),
    "at rho": ([LOW, AT, LOW, LOW, LOW], (), 50),
    "a step without an update says nothing": ([LOW, LOW, HIGH, LOW], (30,), 40),
}


@pytest.mark.parametrize("name", ENDS)
def test_the_stage_ends(name: str) -> None:
    rows, skipped, expected = ENDS[name]
    method = EndSharing(every=EVERY, rho=0.5, times=3)
    ctx = follow(method, Live(series(*rows), "1x4"), 0, 99, skipped)
    assert ctx.step == expected
    assert ctx.end_reason == (
        "gradients of 2 of 3 pairs of shared layers correlate by less than 0.5, those of most "
        "pairs 3 times running"
    )


def test_a_pair_is_of_layers_that_are_one() -> None:
    """Of units of two layers, the first layers of both and the second ones of both."""
    rows = [{(0, 2): 0.4, (1, 3): 0.9}, {(0, 2): 0.4, (1, 3): 0.4}]
    ctx = follow(EndSharing(every=EVERY, times=1), Live(rows, "2x2"), 0, 99)
    assert ctx.step == 20, "one of two is not most"


@pytest.mark.parametrize("stop", [9, 10, 29, 30, 45, 49])
def test_a_resumed_count_goes_on(stop: int) -> None:
    rows = [LOW, HIGH, LOW, LOW, LOW]
    first, second = EndSharing(every=EVERY), EndSharing(every=EVERY)
    follow(first, Live(series(*rows), "1x4"), 0, stop)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    ctx = follow(second, Live(series(*rows[stop // EVERY :]), "1x4"), stop, 99)
    assert ctx.step == 50


SPLITS = [
    {(0, 1): 0.9, (1, 2): 0.5, (2, 3): 0.7},
    {(0, 1): 0.9, (1, 2): 0.4, (2, 3): 0.7},
    {(0, 1): 0.8, (2, 3): 0.1},
    {(0, 1): -0.3},
]
"""By measurement; layers that have parted are not compared any more."""
PARTED = [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0, 1]], []]
"""Groups at first and after each split, the first of which is that of the second measurement."""
SCALED = [([0, 1], 0.5), ([2, 3], 0.5), ([2], 0.5), ([3], 0.5), ([0], 0.5), ([1], 0.5)]


def test_groups_split() -> None:
    live, method = Live(SPLITS, "1x4"), SplitSharing("1x4", every=EVERY, ends_stage=True)
    ctx = follow(method, live, 0, 99)
    assert (ctx.step, ctx.end_reason) == (40, "no layers train as one any more")
    assert live.groups == PARTED and live.scaled == SCALED
    assert method.state_dict()["splits"] == [
        {"step": 20, "between": [[1, 2]]},
        {"step": 30, "between": [[2, 3]]},
        {"step": 40, "between": [[0, 1]]},
    ]


@pytest.mark.parametrize("stop", [5, 10, 19, 20, 30, 39])
def test_resumed_groups_split_on(stop: int) -> None:
    first, second = SplitSharing("1x4", every=EVERY), SplitSharing("1x4", every=EVERY)
    follow(first, Live(SPLITS, "1x4"), 0, stop)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    live = Live(SPLITS[stop // EVERY :], "1x4")
    ctx = follow(second, live, stop, 99)
    assert (ctx.step, ctx.end_reason) == (99, None)
    before = sum(step <= stop for step in (20, 30, 40))
    assert live.groups == PARTED[before:]


def test_other_groups_than_the_checkpoint_has_are_refused() -> None:
    """They would be passed over without a word: what is left of groups is in the checkpoint."""
    first, second = SplitSharing("1x4", every=EVERY), SplitSharing("2x2", every=EVERY)
    follow(first, Live(SPLITS, "1x4"), 0, 20)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    with pytest.raises(AgreedError) as error:
        follow(second, Live([], "1x4"), 20, 99)
    assert str(error.value) == (
        "stages[0].methods: split_sharing with layer_sharing=2x2 is not what the checkpoint was "
        "trained with, in which 0-1, 2-3 train as one; restore what it was"
    )


@pytest.mark.parametrize(
    ("group", "cuts", "parts"),
    [
        ([0, 1, 2, 3, 4, 5], [(0, 1), (3, 4)], [[0], [1, 2, 3], [4, 5]]),
        ([1, 3, 5], [(0, 2), (3, 5)], [[1, 3], [5]]),
        ([0, 2], [], [[0, 2]]),
    ],
)
def test_parts_of_a_group(group: list, cuts: list, parts: list) -> None:
    assert split(group, cuts) == parts


AT_MOST, SHARED = {"at_most": 100}, {"layer_sharing": "1x4"}
MISTAKES = {
    "nothing shared": (
        ({}, "end_sharing", AT_MOST),
        r"stages\[0\].methods\[0\] ends a stage whose layers share their parameters; "
        r"stages\[0\].model.layer_sharing is missing, such as 1x4",
    ),
    "a fixed end": (
        (SHARED, "end_sharing", 100),
        r"methods\[0\] ends the stage; stages\[0\].until=100 must say where it ends at the latest",
    ),
    "stored as one": (
        (SHARED, {"name": "split_sharing", "layer_sharing": "1x4"}, 100),
        r"leave out model.layer_sharing=1x4, or unshare its layers by a growth",
    ),
    "other layers": (
        ({}, {"name": "split_sharing", "layer_sharing": "1x5"}, 100),
        r"methods\[0\].layer_sharing=1x5 is of 5 layers, but the model has num_layers=4",
    ),
    "each alone": (
        ({}, {"name": "split_sharing", "layer_sharing": "4x1"}, 100),
        r"methods\[0\].layer_sharing=4x1 shares no layers",
    ),
    "no bound": (
        ({}, {"name": "split_sharing", "layer_sharing": "1x4", "ends_stage": True}, 100),
        r"methods\[0\].ends_stage ends the stage; stages\[0\].until=100 must say",
    ),
    "compared too seldom": (
        (SHARED, {"name": "end_sharing", "every": 64}, AT_MOST),
        r"methods\[0\].every=64: gradients are compared 2 times before step 190, where the stage "
        r"ends, and must be 3 times; make every smaller, or the stage longer",
    ),
    "never compared": (
        ({}, {"name": "split_sharing", "layer_sharing": "1x4", "every": 190}, 100),
        r"methods\[0\].every=190: gradients are compared 0 times before step 190, where the stage "
        r"ends, and must be 1 times; make every smaller, or the stage longer",
    ),
    "no correlation": (
        (SHARED, {"name": "end_sharing", "rho": 1.5}, AT_MOST),
        r"rho=1.5 must be at most 1",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_work_is_refused(name: str) -> None:
    (model, method, until), message = MISTAKES[name]
    config = run(model, method, until)
    stage = replace(
        CONFIG.resolve(1)[0], model=replace(MODEL, **model), methods={"methods[0]": method}
    )
    with pytest.raises(UserError, match=message):
        methods_of(stage, config, initialisation(stage.model, None, 1))


def test_a_stage_that_ended_before_it_had_to_is_not_too_short() -> None:
    """A run is resumed in the next one; where this one ended is known."""
    method = {"name": "end_sharing", "every": 20}
    config = run(SHARED, method, AT_MOST)
    stage = replace(
        CONFIG.resolve(1)[0], model=replace(MODEL, **SHARED), methods={"methods[0]": method}
    )
    ended = replace(stage, last_step=60, rule=None)
    assert methods_of(ended, config, initialisation(ended.model, None, 1))
