"""A slice of the 7B example on eight ranks: its width, four of its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.rehearsal.process import apart, rehearsed

RUN_FILE = Path(__file__).parents[2] / "examples/gpt2_7b/run.yaml"
OPTIONS = ["--model.num_layers=4", "--model.vocab_size=50257", "--train.global_batch_size=64"]
SPEAKERS = (0, 4)
"""One rank of each pipeline stage of TP4 PP2."""
D, VOCABULARY, POSITIONS = 3072, 50257, 1024


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    told, text = apart(rehearsed, ["--config", str(RUN_FILE), *OPTIONS], 8, SPEAKERS)
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


def test_ranks_that_go_through_no_passes_hold_as_much(found: dict[str, Any]) -> None:
    ranks = found["jobs"]["run"]
    assert [rank["passes"] for rank in ranks] == [number in SPEAKERS for number in range(8)]
    for silent, speaker in ((1, 0), (3, 0), (7, 4)):
        for stage, parts in ranks[speaker]["resident"].items():
            # other: scalars of the micro-batches before
            mine = {**ranks[silent]["resident"][stage], "other": parts["other"]}
            assert mine == parts


def test_pipeline_stages_send_to_each_other(found: dict[str, Any]) -> None:
    first = next(
        phase
        for phase in found["jobs"]["run"][0]["phases"]
        if (phase["stage"], phase["name"]) == (1, "passes")
    )
    sent = {m["kind"]: m for m in first["collectives"] if m["group"] == "pipeline_model_parallel"}
    # hidden states of four micro-batches a step, cut over four ranks: 4 x 1024 x 3072 / 4 in bf16
    assert sent["send"]["count"] == 4 * first["calls"]
    assert sent["send"]["bytes"] == sent["send"]["count"] * 2 * 4 * 1024 * D // 4
