"""The pause of a growth against one checkpoint save, and the memory that it takes."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from statistics import median

import torch.distributed as dist
from rich.progress import track

from megatron_grow.benchmark import memory
from megatron_grow.benchmark.contestants import MegatronGrow, train_section
from megatron_grow.benchmark.gang import Gang
from megatron_grow.benchmark.report import Report
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.save import save
from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.config.stages import StageSection
from megatron_grow.growth.filling import fresh, grown
from megatron_grow.live.stage import LiveStage
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.parallel import process_groups
from megatron_grow.parallel.agreement import leads

RANKS = 4
_MIB = 2**20


class Pause(MegatronGrow):
    """Grows from no layers, data-parallel, to all of them, tensor- and pipeline-parallel."""

    def __init__(self, model: ModelConfig, train: TrainSection, directory: str) -> None:
        self.directory = Path(directory) / "checkpoints"
        process_groups.start()
        self.empty = memory.resident()
        super().__init__(model, train)

    def run_config(self, model: ModelConfig, train: TrainSection) -> RunConfig:
        """Two stages under two layouts."""
        cut = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}
        stages = [
            StageSection(until=1, model={"num_layers": 0}),
            StageSection(parallel=cut, grow=GrowSection(depth="random")),
        ]
        return replace(super().run_config(model, train), stages=stages)

    def restart(self) -> None:
        """Back to the small stage, with moments that are not zero."""
        self.live.release()
        self.live = fresh(self.stages[0], self.config, self.plan(0))
        for piece in self.live.pieces():
            piece.data.normal_()

    def grow(self) -> dict[str, float]:
        """Seconds of the pause, and bytes: of either stage, and all that was in use at most."""
        source, plan = _bytes(self.live), self.plan(1)
        memory.start_peak()
        dist.barrier()
        began = time.perf_counter()
        self.live, _ = grown(self.live, self.stages[1], self.config, plan)
        dist.barrier()
        seconds = time.perf_counter() - began
        peak = memory.peak() - self.empty
        return {"seconds": seconds, "source": source, "target": _bytes(self.live), "peak": peak}

    def save(self) -> float:
        """Save a checkpoint; seconds."""
        record = Record(1, 1, 1, 1, 1, asdict(self.stages[1].model), "fp32", asdict(self.config))
        dist.barrier()
        began = time.perf_counter()
        save(self.directory, record, self.live.pieces(), self.live.tensors)
        dist.barrier()
        seconds = time.perf_counter() - began
        if leads():
            shutil.rmtree(self.directory)
        return seconds


def _bytes(live: LiveStage) -> int:
    """Weights, gradients and moments of this rank."""
    tensors = [piece.data for piece in live.pieces()]
    for chunk in live.chunks:
        tensors += chunk.parameters()
        tensors += (buffer.grad_data for buffer in chunk.buffers)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def _bytes_of_layer(model: ModelConfig) -> int:
    """Weights and moments of one layer, uncut, in fp32."""
    tensors = logical_tensors(model).values()
    return 3 * 4 * sum(prod(tensor.shape[1:]) for tensor in tensors if tensor.stacked)


def measure(model: ModelConfig, repetitions: int) -> Report:
    """Grow and save in turns."""
    train = replace(train_section(model, RANKS, "fp32"), micro_batch_size=1)
    pauses, saves = [], []
    with (
        tempfile.TemporaryDirectory() as directory,
        Gang(Pause, model, train, directory, world_size=RANKS) as gang,
    ):
        for _ in track(range(repetitions), "growths", transient=True):
            gang.call("restart")
            pauses.append(gang.call("grow"))
            saves.append(max(gang.call("save")))
    seconds = [max(rank["seconds"] for rank in ranks) for ranks in pauses]
    layer = _bytes_of_layer(model)
    rows = []
    for number, rank in enumerate(pauses[0]):
        allowed = rank["source"] + rank["target"] + layer
        cells = (rank["source"], rank["target"], layer, allowed, rank["peak"])
        rows.append([f"rank {number}", *(f"{value / _MIB:.0f}" for value in cells)])
    ratio = median(a / b for a, b in zip(seconds, saves, strict=True))
    return Report(
        f"Growth 0 -> {model.num_layers} layers, d={model.hidden_size}, DP{RANKS} -> TP2 PP2: "
        f"pause {median(seconds):.2f} s, one save {median(saves):.2f} s, ratio {ratio:.2f}",
        ["memory in MiB", "source", "target", "one layer", "all three", "peak"],
        rows,
        {"pause_seconds": seconds, "save_seconds": saves, "ratio": ratio, "ranks": pauses},
    )
