"""Apply a plan to a checkpoint: what it would hold after the growth, made as it is read."""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import partial
from threading import Lock

import torch

from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.record import Record
from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.growth.answers import by_itself
from megatron_grow.growth.event import event_of
from megatron_grow.growth.plan import Plan, growth
from megatron_grow.optim.optimizers import recorded_optimizer
from megatron_grow.state.boxes import Box, full, volume
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.materialise import fresh_parts, materialise, sources


class GrownReader(Reader):
    """What a plan makes of a source, made as it is read: one growth can follow another."""

    def __init__(self, source: Reader, plan: Plan, model: ModelConfig, grow: GrowSection) -> None:
        """Nothing is read yet.

        Args:
            source: before the growth.
            plan: of the growth.
            model: the shape after it.
            grow: the operators, for the record.
        """
        self.path, self.format, self.layout = source.path, source.format, source.layout
        self.of_a_run = source.of_a_run
        self.record = grown_record(source.record, plan, model, grow)
        self.tensors = plan.tensors
        self._source, self._plan = source, plan
        self._kinds = _state_kinds(plan, source)
        self._lock = Lock()

    def kinds(self, key: str) -> tuple[str, ...]:
        """``main_param`` and the moments of one tensor."""
        return self._kinds[key]

    def dtype(self, key: str, kind: str) -> torch.dtype:
        """Of the values: of the source's for what it has, else fp32."""
        key = self.tensors[key].drawn_from(self._source.tensors)
        known = key in self._source.tensors and kind in self._source.kinds(key)
        return self._source.dtype(key, kind) if known else torch.float32

    def read(self, key: str, kind: str, box: Box) -> torch.Tensor:
        """The values in ``box``."""
        with self._lock:  # the first thread that reads asks for all
            self._plan = self._plan.answered(partial(by_itself, self._source.read))
        return materialise(self._plan.map(key, kind), kind, box, self._source.read, self._plan.seed)

    def origin(self, key: str, kind: str) -> tuple[str, int]:
        """How a tensor is made, for people, and the bytes that are read for it."""
        tensor_map, box = self._plan.map(key, kind), full(self.tensors[key].shape)
        needed = sources(tensor_map, box)
        new = sum(volume(part) for part, _ in fresh_parts(tensor_map, box))
        if not needed:
            return "fresh", 0
        before = self._source.tensors[self.tensors[key].drawn_from(self._source.tensors)].axes
        how = ", ".join(
            f"{old.size} -> {axis.size} {axis.name}"
            for old, axis in zip(before, self.tensors[key].axes, strict=True)
            if old.size != axis.size
        )
        how = how or "the same"
        if new:
            how += f", {new / volume(box):.0%} fresh"
        return how, sum(volume(b) * self._source.dtype(k, kind).itemsize for k, b in needed)


def spelled_out(source: Reader) -> Reader:
    """The same, of a model in which no layers share their parameters: each has a copy."""
    record = source.record
    if record.model_config.sharing is None:
        return source
    model, grow = replace(record.model_config, layer_sharing=None), GrowSection(depth="unshare")
    plan = growth(
        record.model_config,
        model,
        grow,
        target_depth=model.num_layers,
        seed=0,
        optimizer=recorded_optimizer(record.config) if source.trains else None,
    )
    spelled = GrownReader(source, plan, model, grow)
    spelled.record = replace(spelled.record, growths=record.growths)  # it has not grown
    return spelled


def grown_record(record: Record, plan: Plan, model: ModelConfig, grow: GrowSection) -> Record:
    """What a checkpoint says of itself after a growth that no run has made.

    It is of a run of one stage: training goes on with the model that is stored.
    """
    event = event_of(plan, grow, record.model_config, step=record.step)
    return replace(
        record,
        stage=0,
        model=asdict(model),
        optimizer_step=0 if plan.optimizer_state == "reset" else record.optimizer_step,
        config={**record.config, "model": asdict(model), "stages": []},
        growths=[*record.growths, event],
        stage_ends=[],
        methods={},
        wandb_id=None,
    )


def _state_kinds(plan: Plan, source: Reader) -> dict[str, tuple[str, ...]]:
    """The kinds of state of each target tensor: those of the source, where it has the tensor.

    Moments of others are those that the source's optimizer would keep for them. What methods of the
    stage have kept ends with it.
    """
    assert plan.optimizer is not None, "a growth knows whose state it carries"
    kinds = {}
    for key, tensor in plan.tensors.items():
        states = [*plan.optimizer.rule(tensor).states] if source.trains else []
        if (known := tensor.drawn_from(source.tensors)) in source.tensors:
            states = [kind for kind in source.kinds(known) if kind in states]
        kinds[key] = (MAIN_PARAM, *states)
    return kinds
