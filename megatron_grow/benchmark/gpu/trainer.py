"""Trains a model of one of the shapes, step after step, in a worker."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from megatron_grow.benchmark.contestants import MegatronGrow
from megatron_grow.benchmark.gpu import device
from megatron_grow.benchmark.gpu.shapes import Attempt, Shape
from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.config.stages import StageSection
from megatron_grow.growth.filling import grown
from megatron_grow.live.stage import LiveStage, filled
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.piece import Piece

WARM_UP = 3


class Trainer(MegatronGrow):
    """Takes steps without waiting for the device in between more than training does."""

    def __init__(
        self, model: ModelConfig, train: TrainSection, sections: Mapping[str, Any] | None = None
    ) -> None:
        """``sections`` of the run file are as they are given."""
        self._sections = sections or {}
        super().__init__(model, train)
        pinned = torch.cuda.is_available()  # as the loader's
        self._batches = [
            {name: x.contiguous().pin_memory() if pinned else x for name, x in batch.items()}
            for batch in super()._micro_batches()
        ]

    def run_config(self, model: ModelConfig, train: TrainSection) -> RunConfig:
        """The run to take steps of."""
        return replace(super().run_config(model, train), **self._sections)

    def begin(self) -> LiveStage:
        """The first stage, with numbers drawn on the device: speed alone is measured."""
        plan = self.plan(0)

        def fill(pieces: list[Piece]) -> None:
            for piece in pieces:
                if piece.kind != MAIN_PARAM:
                    piece.data.zero_()
                elif plan.tensors[piece.key].norm == "gain":
                    piece.data.fill_(1.0)
                else:
                    piece.data.normal_(std=self.config.model.init_method_std)

        return filled(self.stages[0], self.config, plan.tensors, fill, updates=0)

    def _micro_batches(self) -> Iterator[dict[str, torch.Tensor]]:
        return iter(self._batches)

    def steps(self, count: int) -> float:
        """Take ``count`` steps; the seconds of one."""
        device.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            self.loop.step(self._micro_batches())
        device.synchronize()
        return (time.perf_counter() - began) / count

    def release(self) -> None:
        """Free the device."""
        self.live.release()
        del self.live, self.loop


class Growing(Trainer):
    """Trains a small stage, then one that has grown out of it to the full depth."""

    def __init__(self, model: ModelConfig, train: TrainSection, num_layers: int) -> None:
        self.small = num_layers
        super().__init__(model, train)

    def run_config(self, model: ModelConfig, train: TrainSection) -> RunConfig:
        """Two stages; no layers to copy from, no copies."""
        depth = "copying_stack" if self.small else "random"
        stages = [
            StageSection(until=WARM_UP, model={"num_layers": self.small}),
            StageSection(grow=GrowSection(depth=depth)),
        ]
        return replace(super().run_config(model, train), stages=stages)

    def grow(self) -> float:
        """Grow to the full depth; the seconds of the pause."""
        plan = self.plan(1)
        device.synchronize()
        began = time.perf_counter()
        self.live, _ = grown(self.live, self.stages[1], self.config, plan)
        device.synchronize()
        seconds = time.perf_counter() - began
        self.loop = self._loop(WARM_UP)
        return seconds


def fitting(
    shape: Shape, model: ModelConfig, sections: Mapping[str, Any] | None = None
) -> tuple[Trainer, Attempt]:
    """A trainer of ``model`` that has taken its first steps, by the first attempt that fits."""
    for attempt in shape.attempts:
        if trainer := _try(shape, model, attempt, sections):
            return trainer, attempt
    raise RuntimeError(f"{shape.name} with {model.num_layers} layers does not fit")


def _try(
    shape: Shape, model: ModelConfig, attempt: Attempt, sections: Mapping[str, Any] | None
) -> Trainer | None:
    device.start_peak()
    trainer = None
    try:
        trainer = Trainer(model, shape.train(attempt), sections)
        trainer.steps(WARM_UP)
        return trainer
    except device.OUT_OF_MEMORY:
        pass
    if trainer is not None:  # when the error has let go of its frames
        trainer.release()
        del trainer
    device.let_go()
    return None
