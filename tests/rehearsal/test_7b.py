"""A slice of the 7B example on eight ranks: its width, four of its layers, cut by TP4 PP2."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_grow.config.run import parse_run
from megatron_grow.cost.peak import growth_peak
from tests.forks import apart
from tests.rehearsal.formula import WITHIN, check_parts, peak_by_part, placed
from tests.rehearsal.rehearsed import rehearsed

RUN_FILE = Path(__file__).parents[2] / "examples/gpt2_7b/run.yaml"
LAYOUT = {
    "tensor_model_parallel_size": 4,
    "pipeline_model_parallel_size": 2,
    "sequence_parallel": True,
}
STAGES = [
    {"until": 0.8, "model": {"num_layers": 0}},
    {"grow": {"depth": "random"}, "parallel": LAYOUT},
]
OPTIONS = ["--model.num_layers=4", "--model.vocab_size=50257", "--train.global_batch_size=64"]
ARGV = ["--config", str(RUN_FILE), *OPTIONS, f"--stages={json.dumps(STAGES)}"]
RANKS, SPEAKERS = 8, (0, 4)
"""One rank of each pipeline stage."""
D, VOCABULARY, POSITIONS = 3072, 50257, 1024


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    told, text = apart(rehearsed, ARGV, RANKS, SPEAKERS)
    assert told["completed"] and told["fits"], text
    return told


def test_what_a_rank_holds_when_it_has_grown(found: dict[str, Any]) -> None:
    norms = 2 * 2 * D  # of a layer: gain and bias
    layers = 2 * (12 * D**2 // 4 + norms)  # two of four, matrices cut by four
    table = -(-VOCABULARY // 512) * 512 // 4 * D  # padded to 128 on each rank
    for rank, rest in ((0, POSITIONS * D), (4, 2 * D)):
        parameters = layers + table + rest
        held = found["jobs"]["run"][rank]["resident"][1]
        assert held["weights"] == pytest.approx(2 * parameters, rel=0.001)
        assert held["gradients"] == pytest.approx(4 * parameters, rel=0.001)
        assert held["optimizer"] == pytest.approx(12 * parameters, rel=0.001)


@pytest.mark.parametrize("stage", [0, 1])
def test_parts_of_a_peak_by_formula(found: dict[str, Any], stage: int) -> None:
    expected = peak_by_part(parse_run(ARGV), stage, RANKS)
    for pipeline, rank in enumerate(SPEAKERS):
        check_parts(_phase(found, rank, stage, "training"), expected[min(pipeline, stage)])


def test_the_peak_of_the_growth_by_formula(found: dict[str, Any]) -> None:
    """Ranks exchange 2**25 values at a time: a quarter of the table and its moments are more."""
    before, after = (placed(parse_run(ARGV), stage, RANKS) for stage in (0, 1))
    for state, rank in zip(after.states, SPEAKERS, strict=True):
        expected = growth_peak(before.states[0], state, shares_state=False, exchanged=4 << 25)
        assert _phase(found, rank, 1, "growth")["peak"] == pytest.approx(expected, rel=WITHIN)


def test_the_peak_of_a_start_by_formula(found: dict[str, Any]) -> None:
    """Weights are there twice while they move into the optimizer's buffer; nothing is carried."""
    [state] = placed(parse_run(ARGV), 0, RANKS).states
    nothing = replace(state, weights=0, gradients=0, main_params=0, moments=0)
    expected = growth_peak(nothing, state, shares_state=True, exchanged=0)
    assert _phase(found, 0, 0, "build")["peak"] == pytest.approx(expected, rel=WITHIN)


def _phase(found: dict[str, Any], rank: int, stage: int, name: str) -> dict[str, Any]:
    phases = found["jobs"]["run"][rank]["phases"]
    return next(each for each in phases if (each["stage"], each["name"]) == (stage, name))


def test_ranks_that_go_through_no_passes_hold_as_much(found: dict[str, Any]) -> None:
    ranks = found["jobs"]["run"]
    assert [rank["passes"] for rank in ranks] == [number in SPEAKERS for number in range(8)]
    for silent, speaker in ((1, 0), (3, 0), (7, 4)):
        for stage, parts in ranks[speaker]["resident"].items():
            # other: scalars of the micro-batches before
            mine = {**ranks[silent]["resident"][stage], "other": parts["other"]}
            assert mine == parts


def test_pipeline_stages_send_to_each_other(found: dict[str, Any]) -> None:
    first = _phase(found, 0, 1, "passes")
    sent = {m["kind"]: m for m in first["collectives"] if m["group"] == "pipeline_model_parallel"}
    # hidden states of four micro-batches a step, cut over four ranks: 4 x 1024 x 3072 / 4 in bf16
    assert sent["send"]["count"] == 4 * first["calls"]
    assert sent["send"]["bytes"] == sent["send"]["count"] * 2 * 4 * 1024 * D // 4
