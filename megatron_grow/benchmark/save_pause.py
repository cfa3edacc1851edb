"""The pause of a save, with and without ``checkpoint.async_save``, and the steps beside it."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from statistics import median

import torch.distributed as dist
from rich.progress import track

from megatron_grow.benchmark.contestants import MegatronGrow, train_section
from megatron_grow.benchmark.gang import Gang
from megatron_grow.benchmark.report import Report
from megatron_grow.checkpoint.record import Record
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.parallel.agreement import leads
from megatron_grow.train.saves import Saves

RANKS = 4
_SEQ_LENGTH = 128
"""Of the steps: short, so that a save is beside several of them."""


class Saving(MegatronGrow):
    """Trains data-parallel, each rank with its share of the optimizer's state, and saves."""

    def __init__(self, model: ModelConfig, train: TrainSection, directory: str) -> None:
        super().__init__(model, train)
        self.directory = Path(directory) / "checkpoints"
        self.directory.mkdir(exist_ok=True)
        stack = ExitStack()  # left with the process
        self.saves = {
            asynchronous: stack.enter_context(
                Saves(lambda *complete: None, asynchronous=asynchronous)
            )
            for asynchronous in (False, True)
        }

    def pause(self, asynchronous: bool) -> float:
        """Save, or begin to; seconds until training can go on."""
        model = asdict(self.config.model)
        record = Record(1, 0, 0, 0, 1, model, "fp32", asdict(self.config))
        saves, pieces = self.saves[asynchronous], self.live.pieces()
        dist.barrier()
        began = time.perf_counter()
        saves.begin(self.directory, record, pieces, self.live.tensors)
        dist.barrier()
        return time.perf_counter() - began

    def under_way(self) -> bool:
        """Whether the asynchronous save still is."""
        return not self.saves[True].done

    def finish(self) -> None:
        """Wait for it, and make room."""
        self.saves[True].finish()
        dist.barrier()
        if leads():
            for path in self.directory.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def measure(model: ModelConfig, repetitions: int) -> Report:
    """Save with and without, in turns; steps alone, and beside an asynchronous save."""
    train = train_section(model, RANKS, "fp32")
    train = replace(train, micro_batch_size=1, seq_length=_SEQ_LENGTH)
    waits, pauses, alone, beside, behind = [], [], [], [], []
    with (
        tempfile.TemporaryDirectory() as directory,
        Gang(Saving, model, train, directory, world_size=RANKS) as gang,
    ):
        gang.call("step")
        for _ in track(range(repetitions), "saves", transient=True):
            alone += [max(gang.call("step")) for _ in range(3)]
            waits.append(max(gang.call("pause", False)))
            gang.call("finish")
            began = time.perf_counter()
            pauses.append(max(gang.call("pause", True)))
            while any(gang.call("under_way")):
                seconds = max(gang.call("step"))
                if all(gang.call("under_way")):  # all of it, not a part
                    beside.append(seconds)
            behind.append(time.perf_counter() - began)
            gang.call("finish")
    ratios = [wait / pause for wait, pause in zip(waits, pauses, strict=True)]
    figures = {
        "pause of a save, s": waits,
        "pause with async_save, s": pauses,
        "times shorter": ratios,
        "from begin to complete, with steps beside it, s": behind,
        "a step, s": alone,
        "a step beside a save, s": beside,
    }
    size = sum(prod(tensor.shape) for tensor in logical_tensors(model).values()) * 12 / 1e9
    return Report(
        f"A save of {size:.2f} GB by {RANKS} ranks: {model.num_layers} layers, "
        f"d={model.hidden_size}, steps of {RANKS} x {_SEQ_LENGTH} tokens",
        ["", "median", "least", "most", "n"],
        [
            [name, *(f"{value:.2f}" for value in (median(v), min(v), max(v))), str(len(v))]
            for name, v in figures.items()
            if v
        ],
        figures,
    )
