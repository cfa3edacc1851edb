"""Rehearsed peaks of memory against those of real processes on the CPU, and against formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from megatron_grow.config.run import parse_run
from megatron_grow.model.kernels.table import KERNELS
from tests.cost.storages import Storages
from tests.distributed import run_ranks
from tests.forks import apart
from tests.rehearsal.formula import check_parts, peak_by_part

WITHIN = 0.03

SHAPES: dict[str, dict[str, Any]] = {
    "GPT-2": {"num_layers": 2, "hidden_size": 192, "num_attention_heads": 4, "vocab_size": 4096},
    "Llama": {
        "num_layers": 3,
        "hidden_size": 160,
        "num_attention_heads": 4,
        "vocab_size": 2048,
        "ffn_hidden_size": 512,
        "position_embedding_type": "rope",
        "normalization": "RMSNorm",
        "activation": "swiglu",
        "add_bias_linear": False,
    },
    "deep": {"num_layers": 6, "hidden_size": 128, "num_attention_heads": 2, "vocab_size": 1024},
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "sharded optimizer": {},
    "TP2 with sequence parallelism": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
}
CASES = [
    ("GPT-2", "sharded optimizer"),
    ("GPT-2", "TP2 with sequence parallelism"),
    ("Llama", "TP2 with sequence parallelism"),
    ("deep", "sharded optimizer"),
]
COMPILED = ("Llama", "sharded optimizer")
"""Rehearsed besides, with layers compiled as a whole."""
RANKS = 2


def storages_of_a_step(argv: list[str]) -> int:
    """On a rank: bytes of live storages at most, in the steps of a real run.

    Counted apart from the rehearsal, by what operators return.
    """
    from megatron_grow.live.stage import LiveStage
    from megatron_grow.model.layers import cross_entropy
    from megatron_grow.train.entry import main
    from megatron_grow.train.loop import Loop

    cross_entropy._BLOCK_ELEMENTS["cpu"] = cross_entropy._BLOCK_ELEMENTS["cuda"]
    step, counted = Loop.step, Storages()

    def watched(self: Loop, batches: Any) -> None:
        chunks, shards = self.ctx.live.chunks, self.ctx.live.shards()
        counted.hold(p for chunk in chunks for p in chunk.parameters())
        counted.hold(b.grad_data for chunk in chunks for b in chunk.buffers)
        counted.hold(x for shard in shards for x in (shard.main, *shard.state.values()))
        with counted:
            step(self, batches)

    Loop.step = watched  # type: ignore[method-assign]
    LiveStage.evaluate = lambda *args: None  # type: ignore[method-assign, assignment]
    assert main(argv) == 0
    return counted.peak


def rehearsed_steps(commands: list[list[str]]) -> list[list[dict[str, Any]]]:
    """Of each command, and each rank: its steps."""
    from megatron_grow.cost.devices import DEVICES
    from megatron_grow.rehearsal.rehearse import rehearse

    found = []
    for argv in commands:
        device = DEVICES["h100"]
        done = rehearse(argv, world_size=RANKS, passes=range(RANKS), device=device, saves=False)
        assert not done.failed, done.jobs
        ranks = done.jobs["run"]
        found.append([p for rank in ranks for p in rank.phases if p["name"] == "training"])
    return found


def commands(workplace: Path) -> list[list[str]]:
    """One-stage runs in fp32, of two micro-batches on each rank, without kernels of a GPU's own."""
    base = yaml.safe_load((workplace / "run.yaml").read_text())
    made = []
    for shape, layout in (*CASES, COMPILED):
        ranks = LAYOUTS[layout].get("tensor_model_parallel_size", 1)
        layers = (shape, layout) == COMPILED
        run = {
            **base,
            "model": {"max_position_embeddings": 64, **SHAPES[shape]},
            "parallel": LAYOUTS[layout],
            "train": {
                "train_iters": 3,
                "seq_length": 64,
                "micro_batch_size": 4,
                "global_batch_size": 8 * RANKS // ranks,
                "eval_iters": 0,
            },
            "kernels": {name: name == "layers" and layers for name in KERNELS},
            "stages": [],
            "checkpoint": {"save_interval": 0},
        }
        path = workplace / f"peak_{len(made)}.yaml"
        run["run"] = {"output_dir": str(workplace / path.stem)}
        path.write_text(yaml.safe_dump(run))
        made.append(["--config", str(path)])
    return made


class Peaks(NamedTuple):
    """Of one command."""

    argv: list[str]
    real: list[int]
    """Bytes, by rank."""
    rehearsed: list[dict[str, Any]]
    """Steps, by rank."""


@pytest.fixture(scope="module")
def peaks(workplace: Path) -> dict[tuple[str, str], Peaks]:
    """By shape and layout; real ones of :data:`CASES` alone."""
    runs = commands(workplace)
    real = [run_ranks(RANKS, storages_of_a_step, argv) for argv in runs[: len(CASES)]]
    found = map(Peaks, runs, [*real, []], apart(rehearsed_steps, runs))
    return dict(zip((*CASES, COMPILED), found, strict=True))


@pytest.mark.parametrize("case", [*CASES, COMPILED])
def test_parts_of_a_peak_by_formula(
    peaks: dict[tuple[str, str], Peaks], case: tuple[str, str]
) -> None:
    [expected] = peak_by_part(parse_run(peaks[case].argv), 0, RANKS)
    for phase in peaks[case].rehearsed:
        check_parts(phase, expected)


@pytest.mark.parametrize("case", CASES)
def test_the_peak_of_a_step(peaks: dict[tuple[str, str], Peaks], case: tuple[str, str]) -> None:
    _, real, steps = peaks[case]
    rehearsed = [phase["peak"] for phase in steps]
    assert len(real) == len(rehearsed) == RANKS
    assert rehearsed == pytest.approx(real, rel=WITHIN)
    assert min(real) > 5e6, "small tensors, which are rounded up, would decide"
