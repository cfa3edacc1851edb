"""Architectures whose tensors are not those of their model: one line, on all ranks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.config.stages import StageSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.live.stage import LiveStage
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.model.gpt.architecture import GPT
from megatron_grow.model.gpt.tensors import MLP
from megatron_grow.state.axes import FFN, Axis
from megatron_grow.state.tensors import LogicalTensor
from tests.distributed import run_ranks
from tests.toy import TIED, layout, run_config

FC2 = f"{MLP}linear_fc2.weight"
BIAS = f"{MLP}linear_fc2.bias"
WHOLE_FFN = replace(FFN, partitioned_by=None)

Tensors = dict[str, LogicalTensor]


def forgotten(tensors: Tensors) -> Tensors:
    return {key: tensor for key, tensor in tensors.items() if key != BIAS}


def one_too_many(tensors: Tensors) -> Tensors:
    key = f"{MLP}more.bias"
    return {**tensors, key: replace(tensors[BIAS], key=key)}


def other(tensors: Tensors, key: str, change: Callable[[Axis], Axis]) -> Tensors:
    tensor = tensors[key]
    return {**tensors, key: replace(tensor, axes=tuple(change(axis) for axis in tensor.axes))}


def too_narrow(tensors: Tensors) -> Tensors:
    return other(tensors, FC2, lambda axis: replace(axis, size=48) if axis.rule == FFN else axis)


def not_partitioned(tensors: Tensors) -> Tensors:
    return other(
        tensors, FC2, lambda axis: replace(axis, rule=WHOLE_FFN) if axis.rule == FFN else axis
    )


def of_some_layers(tensors: Tensors) -> Tensors:
    tensor = tensors[BIAS]
    first, *others = tensor.axes
    some = replace(tensor, axes=(replace(first, size=1), *others), layers=(0,))
    return {**tensors, BIAS: some}


def of_no_layer(tensors: Tensors) -> Tensors:
    tensor = tensors[BIAS]
    return {**tensors, BIAS: replace(tensor, axes=tensor.axes[1:], groups=tensor.groups[1:])}


MISTAKES = {
    "forgotten": (forgotten, rf"its tensors\(\) lacks {BIAS}, which its model has"),
    "one too many": (
        one_too_many,
        rf"by its tensors\(\) {MLP}more\.bias has 64 values; in its model, .* have 0",
    ),
    "too narrow": (
        too_narrow,
        rf"by its tensors\(\) a parameter of {FC2} is \(32, 24\) .*; in its model .*\(32, 32\)",
    ),
    "not partitioned": (
        not_partitioned,
        rf"by its tensors\(\) a parameter of {FC2} is \(32, 64\) .*; in its model .*\(32, 32\)",
    ),
    "of some layers": (of_some_layers, rf"{BIAS} is of layers \[0\]; its model has it in layer 1"),
    "of no layer": (of_no_layer, rf"the model has {BIAS}; in its model each layer has it"),
    "not saved": (dict, r"its model's sharded_state_dict\(\) lacks decoder\..*\.mlp\..*weight"),
    "no mistake": (dict, None),
}


@dataclass(frozen=True)
class Mistaken(GPT):
    """A GPT that is mistaken about its tensors."""

    mistake: str = "no mistake"

    def tensors(self, model: ModelConfig, target_depth: int | None) -> Tensors:
        tensors = super().tensors(model, target_depth)
        change, _ = MISTAKES[self.mistake]
        return change(tensors)

    def build(
        self, model: ModelConfig, parallel: ParallelConfig, train: TrainSection
    ) -> list[torch.nn.Module]:
        chunks = super().build(model, parallel, train)
        if self.mistake == "not saved":
            chunks[0].decoder.layers[0].mlp.sharded_state_dict = lambda *_, **__: {}
        return chunks


def messages(world_size: int) -> dict[str, str | None]:
    """On a rank: what is said of each, before any value is there."""
    found: dict[str, str | None] = {}
    for mistake in MISTAKES:
        model = replace(TIED, architecture=f"{__name__}:Mistaken", options={"mistake": mistake})
        config = run_config(StageSection(parallel=layout(tp=2, pp=2)), model=model)
        (stage,) = config.resolve(world_size)
        try:
            LiveStage(stage, config, logical_tensors(model)).release()
            found[mistake] = None
        except UserError as error:
            found[mistake] = str(error)
    return found


def test_every_rank_says_where_tensors_and_model_differ() -> None:
    for found in run_ranks(4, messages, 4):
        for mistake, (_, expected) in MISTAKES.items():
            said = found[mistake]
            assert (said is None) == (expected is None), mistake
            if said and expected:
                assert "\n" not in said
                assert re.search(expected, said), said
