"""What rows tell of GPUs, where some are made up."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import LoggingSection, TrainSection
from megatron_grow.config.stages import StageSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.model.kernels.table import Chosen
from megatron_grow.train import gpu
from megatron_grow.train.batches import Waiting
from megatron_grow.train.console import Console
from megatron_grow.train.fused import FusedKernels
from megatron_grow.train.metrics import MetricsLog
from megatron_grow.train.output import Output
from megatron_grow.train.training_rows import TrainingRows
from tests.distributed import run_ranks
from tests.toy import begin, layout, loop_over, micro_batches, run_config

_LATE = 0.3
"""Seconds; a step of the toy model takes a tenth of it."""


class _Late(TrainingMethod):
    """Lets the last rank do nothing for a while in each step."""

    def before_step(self, ctx: Context) -> None:
        if dist.get_rank() == dist.get_world_size() - 1:
            time.sleep(_LATE)


def _rows(layouts: list[dict[str, int]], directory: Path) -> list[list[dict]]:
    """Of two steps in each layout."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    made_up = gpu.Gpu(peak=1e9, peak_memory=lambda: 1000 * (rank + 1))
    found = []
    for number, parallel in enumerate(layouts):
        config = run_config(StageSection(parallel=parallel), train_iters=2)
        log = MetricsLog(directory / str(number)) if rank == 0 else None
        rows = TrainingRows(Output(Console(1, enabled=False), log), made_up)
        live = begin(config, world_size)
        loop = loop_over(live, config, others=[rows, _Late()])
        for _ in loop.steps(micro_batches(config, 0)):
            pass
        live.release()
        found.append(log.rows() if log else [])
    return found


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Of TP2, PP2 and DP2; each has one."""
    layouts = [layout(tp=2), layout(pp=2), layout()]
    found, _ = run_ranks(2, _rows, layouts, tmp_path_factory.mktemp("rows"))
    return [row for (row,) in found]


@pytest.mark.parametrize("number", range(3), ids=["TP2", "PP2", "DP2"])
def test_one_of_two_ranks_waits_for_the_other(rows: list[dict], number: int) -> None:
    """Who is late waits for nobody meanwhile; the other computes a little, and waits for the rest:
    in its first collective."""
    share, late = rows[number]["communication_wait"], _LATE / rows[number]["step_time"]
    assert 0.8 * late / 2 < share < 1 - late / 2


def test_a_single_rank_waits_for_none(tmp_path: Path) -> None:
    [[[row]]] = run_ranks(1, _rows, [layout()], tmp_path)
    assert row["communication_wait"] == 0


def test_rows_of_two_gpus(rows: list[dict]) -> None:
    row = rows[0]
    assert row["peak_memory"] == 2000  # of the fullest
    assert 0 < row["data_wait"] < 1
    each = row["tokens_per_second"] / 2
    assert row["tokens_per_second_per_gpu"] == each
    # PaLM (appendix B): six for each parameter and token, and 12 x layers x hidden x sequence; the
    # table of positions multiplies nothing, and that of tokens does in the tied head.
    layers = 4 * (2 * 32 * 32 + 2 * 32 * 16 + 2 * 32 * 64)
    flops = 6 * (layers + 128 * 32) + 12 * 4 * 32 * 16
    assert row["mfu"] == pytest.approx(flops * each / 1e9)


def test_waits_add_up() -> None:
    waiting = Waiting(iter([{}, {}]))
    assert list(waiting) == [{}, {}]
    assert waiting.seconds > 0


def test_which_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.gpu_of(RunConfig()) is None  # a CPU has none
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert gpu.gpu_of(RunConfig()).peak == 989.5e12
    assert gpu.gpu_of(RunConfig(logging=LoggingSection(peak_tflops=100))).peak == 1e14
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert gpu.gpu_of(RunConfig()).peak is None


def test_fp8_that_would_be_ignored_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^train\.fp8=hybrid needs .*transformer_engine; layers of"
    ):
        TrainSection(fp8="hybrid")
    assert TrainSection(fp8="e4m3", transformer_impl="transformer_engine").fp8 == "e4m3"


def test_kernels_are_told_once_and_what_compiling_took(capsys: pytest.CaptureFixture) -> None:
    chosen = Chosen(("attention", "rotary"), {"weight_gradients": "a newer torch"})
    stage, live = SimpleNamespace(index=1), SimpleNamespace(kernels=chosen)
    ctx: Any = SimpleNamespace(live=live, stage=stage, step=7, began=time.perf_counter() - 2.0)
    with Console(total_steps=100) as console:
        told = FusedKernels(console)
        told.on_stage_start(ctx)
        told.after_step(ctx)
        told.after_step(ctx)
        live.kernels = Chosen((), {})
        told.on_stage_start(ctx)  # of a CPU: nothing
        told.after_step(ctx)
    first, second = capsys.readouterr().out.splitlines()
    assert first == (
        "stage 1, kernels: attention, rotary; without weight_gradients, for lack of a newer torch"
    )
    assert second.startswith("step   7/100 | compiled kernels: this step took 2.")
