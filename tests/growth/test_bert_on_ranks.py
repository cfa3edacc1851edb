"""Growths of a BERT on real ranks: one map in three ways, and training that goes on as on one."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.config.stages import StageSection
from megatron_grow.live.stage import LiveStage
from tests.bert import BERT, bert, micro_batches
from tests.distributed import run_ranks
from tests.growth.three_ways import Found, check_bits, grow_all_ways
from tests.toy import begin, layout, loop_over, plan_of, run_config

STEPS, MORE = 2, 3
"""Before the growth, and after it."""
MODEL = bert(replace(BERT, kv_channels=8, layernorm_epsilon=1e-12))


@dataclass
class Case:
    grow: dict[str, Any]
    source: dict[str, Any]
    kept: bool


CASES = {
    "wider and deeper": Case(
        {"depth": "copying_zero", "width": "hypercloning", "heads": "zero", "ffn": "lemon"},
        {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "ffn_hidden_size": 24},
        kept=True,
    ),
    "shared layers": Case({"depth": "unshare"}, {"layer_sharing": "2x2"}, kept=True),
    "from no layer": Case({"depth": "random"}, {"num_layers": 0}, kept=False),
    "from one layer, and rows": Case(
        {"depth": "copying_stack", "vocab": "mean", "positions": "interpolate"},
        {"num_layers": 1, "vocab_size": 120, "max_position_embeddings": 24},
        kept=False,
    ),
}
NORMS = ("post", "pre")
TP2 = layout(tp=2, sequence_parallel=True)
LAYOUTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "one rank": (1, layout(), layout()),
    "DP2 to TP2": (2, layout(), TP2),
    "TP2 to PP2": (2, TP2, layout(pp=2)),
}
"""Ranks, and the layouts before and after the growth; the optimizer's state is always sharded."""


def run(name: str, norms: str, where: str) -> RunConfig:
    _, before, after = LAYOUTS[where]
    case = CASES[name]
    larger = {"vocab_size": 130, "max_position_embeddings": 32} if name.endswith("rows") else {}
    return run_config(
        StageSection(until=STEPS, model=case.source, parallel=before),
        StageSection(parallel=after, grow=GrowSection(**case.grow)),
        model=replace(bert(MODEL, norm_position=norms), **larger),
        optimizer=OptimizerSection(lr=3e-3),
        train_iters=STEPS + MORE,
        global_batch_size=4,
        micro_batch_size=2,
    )


def seen(live: LiveStage, config: RunConfig) -> list[dict[str, float]]:
    """Means of an evaluation, and after the growth those of the steps that follow."""
    evaluated = live.evaluate(micro_batches(config, 0), 1)
    assert evaluated is not None
    return [evaluated, *(trained(live, config) if live.stage.index else [])]


def trained(live: LiveStage, config: RunConfig) -> list[dict[str, float]]:
    loop, first = loop_over(live, config), live.stage.first_step
    steps = islice(loop.steps(micro_batches(config, first)), live.stage.last_step - first)
    return [ctx.means() for ctx in steps]


Run = tuple[str, str, str]
"""Name of the case, position of norms, and layouts."""
RUNS: list[Run] = [(name, norms, where) for name in CASES for norms in NORMS for where in LAYOUTS]


def grow_everything(world_size: int, root: str) -> dict[Run, Found]:
    """On a rank."""
    found = {}
    for each in RUNS:
        if LAYOUTS[each[2]][0] != world_size:
            continue
        config = run(*each)
        live = begin(config, world_size)
        trained(live, config)
        see, directory = lambda live, config=config: seen(live, config), Path(root).joinpath(*each)
        found[each] = grow_all_ways(live, config, world_size, directory, see)
    return found


@pytest.fixture(scope="module")
def found() -> dict[Run, list[Found]]:
    everything = {}
    for world_size in (1, 2):
        with tempfile.TemporaryDirectory() as root:
            ranks = run_ranks(world_size, grow_everything, world_size, root)
        everything |= {each: [rank[each] for rank in ranks] for each in ranks[0]}
    return everything


@pytest.mark.parametrize(("name", "norms", "where"), RUNS)
def test_the_bits_are_those_of_the_algebra(
    name: str, norms: str, where: str, found: dict[Run, list[Found]]
) -> None:
    check_bits(run(name, norms, where), found[name, norms, where])


@pytest.mark.parametrize(("name", "norms", "where"), RUNS)
def test_the_losses_are_those_of_one_rank(
    name: str, norms: str, where: str, found: dict[Run, list[Found]]
) -> None:
    """Of both heads: before the growth, right after it, and of the steps that follow."""
    (alone,), ranks = found[name, norms, "one rank"], found[name, norms, where]
    expected = [*alone.before, *alone.after]
    assert len(expected) == 2 + MORE
    for rank in ranks:
        for ours, theirs in zip([*rank.before, *rank.after], expected, strict=True):
            assert {"loss", "masked_lm_loss", "sentence_loss"} <= theirs.keys()
            assert ours == pytest.approx(theirs, rel=2e-5)


@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("name", CASES)
def test_the_function_is_kept_where_the_plan_says_so(
    name: str, norms: str, found: dict[Run, list[Found]]
) -> None:
    config, (alone,) = run(name, norms, "one rank"), found[name, norms, "one rank"]
    assert (plan_of(config, 1, 1).caveats == ()) == CASES[name].kept
    for loss in ("masked_lm_loss", "sentence_loss"):
        before, after = alone.before[0][loss], alone.after[0][loss]
        assert (abs(after / before - 1) < 1e-6) == CASES[name].kept
