"""What a run does, told apart from outside: the training code knows nothing of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from megatron_grow.growth import filling, in_memory
from megatron_grow.live.stage import LiveStage
from megatron_grow.rehearsal.collectives import Collective
from megatron_grow.rehearsal.half_fake import HalfFake
from megatron_grow.train import trainer
from megatron_grow.train.loop import Loop
from megatron_grow.train.saving import Saving
from megatron_grow.train.start import Start

WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer"
OLD_STAGE, ACTIVATIONS, EXCHANGE = "old stage", "activations", "exchange"
PARTS = (WEIGHTS, GRADIENTS, OPTIMIZER, OLD_STAGE, ACTIVATIONS, EXCHANGE, "other")
"""What memory is for; :data:`OPTIMIZER` with what an update makes for a moment."""

_PHASES: tuple[tuple[Any, str, str, str | None], ...] = (
    (LiveStage, "__init__", "build", None),
    (trainer, "grow", "growth", None),
    (filling, "transfer", "exchange", EXCHANGE),
    (in_memory, "plan_exchange", "planning", None),
    (Loop, "step", "training", None),
    (LiveStage, "forward_backward", "passes", ACTIVATIONS),
    (LiveStage, "update", "update", OPTIMIZER),
    (LiveStage, "evaluate", "evaluation", ACTIVATIONS),
    (Saving, "_write", "save", None),
    (Start, "load", "load", None),
)
"""Whose function is a phase, its name, and the part that memory made in it is of."""


@dataclass
class Phase:
    """What one kind of thing has cost a rank in one stage; peaks are the worst, the rest sums."""

    stage: int
    name: str
    calls: int = 0
    seconds: float = 0.0
    """On this machine, all times together."""
    peak: int = 0
    """Bytes on the device."""
    parts: dict[str, int] = field(default_factory=dict)
    """Of the peak."""
    collectives: Counter[Collective] = field(default_factory=Counter)
    bytes: Counter[Collective] = field(default_factory=Counter)
    host_waits: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        messages = [
            {**kind._asdict(), "count": count, "bytes": self.bytes[kind]}
            for kind, count in self.collectives.items()
        ]
        return {
            "stage": self.stage,
            "name": self.name,
            "calls": self.calls,
            "seconds": self.seconds,
            "peak": self.peak,
            "parts": self.parts,
            "collectives": messages,
            "host_waits": dict(self.host_waits),
        }


class Phases:
    """Watches a run through a mode, by functions that it replaces in this process."""

    def __init__(self, mode: HalfFake) -> None:
        """Watch from now on."""
        self._mode = mode
        self.stage = 0
        """That is trained, or grown to."""
        self.within: str | None = None
        """The innermost phase."""
        self.found: dict[tuple[int, str], Phase] = {}
        """By stage and name."""
        self.resident: dict[int, dict[str, int]] = {}
        """By stage, bytes of each part once it has been built."""
        for owner, name, phase, part in _PHASES:
            setattr(owner, name, self._watched(getattr(owner, name), phase, part))

    def _watched(self, call: Callable, name: str, part: str | None) -> Callable:
        @wraps(call)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if name == "growth":
                self._leave_stage()
            with self._phase(name, part):
                result = call(*args, **kwargs)
                if name == "build":
                    self._assign(args[0])
                return result

        return watched

    @contextmanager
    def _phase(self, name: str, part: str | None) -> Iterator[None]:
        mode, began = self._mode, time.perf_counter()
        messages, host_waits = mode.collectives, Counter(mode.host_waits)
        count, sent = Counter(messages.count), Counter(messages.bytes)
        memory, outer = mode.memory, self.within
        self.within = name
        with memory.peak() as peak, memory.making(part or memory.part):
            yield
        self.within = outer  # not after an error, which is told of with its phase
        phase = self.found.setdefault((self.stage, name), Phase(self.stage, name))
        phase.calls += 1
        phase.seconds += time.perf_counter() - began
        if peak.total >= phase.peak:
            phase.peak, phase.parts = peak.total, dict(+peak.parts)
        phase.collectives += messages.count - count
        phase.bytes += messages.bytes - sent
        phase.host_waits += mode.host_waits - host_waits

    def _leave_stage(self) -> None:
        self.stage += 1
        self._mode.memory.rename((WEIGHTS, GRADIENTS, OPTIMIZER), OLD_STAGE)

    def _assign(self, live: LiveStage) -> None:
        """Tell what a stage that has just been built consists of."""
        self.stage = live.stage.index
        memory = self._mode.memory
        params = [param for chunk in live.chunks for param in chunk.parameters()]
        buffers = [
            buffer
            for chunk in live.chunks
            for buffer in (*chunk.buffers, *chunk.expert_parallel_buffers)
        ]
        for shard in live.shards():
            memory.assign(OPTIMIZER, (shard.main, *shard.state.values()))
        memory.assign(GRADIENTS, (buffer.grad_data for buffer in buffers))
        trained = [param for param in params if hasattr(param, "main_grad")]
        memory.assign(GRADIENTS, (param.main_grad for param in trained))
        memory.assign(WEIGHTS, params)
        self.resident[self.stage] = {part: size for part, size in memory.parts.items() if size}
