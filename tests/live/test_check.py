"""What a built model is checked for, besides its tensors."""

from __future__ import annotations

import torch

from megatron_grow.config.stages import StageSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.live.check import check_fp8
from tests.distributed import run_ranks
from tests.toy import begin, run_config


class Engine(torch.nn.Linear):
    """Stands for a matrix of Transformer Engine."""

    __module__ = "transformer_engine.pytorch.module.linear"


class Made(Engine):
    """As megatron-core has them: its own, of Transformer Engine's."""


def _said() -> tuple[str, str]:
    config = run_config(StageSection(parallel={"pipeline_model_parallel_size": 2}))
    chunks = begin(config, 2).chunks
    check_fp8(chunks, None, "mine")
    said = _refusal(chunks)
    if torch.distributed.get_rank() == 1:
        _use_engine(chunks)
    return said, _refusal(chunks)


def _use_engine(chunks: list[torch.nn.Module]) -> None:
    for layer in (part for chunk in chunks for part in chunk.modules()):
        if hasattr(layer, "mlp"):
            layer.mlp.linear_fc1 = Made(2, 2)


def _refusal(chunks: list[torch.nn.Module]) -> str:
    try:
        check_fp8(chunks, "hybrid", "mine")
    except UserError as error:
        return str(error)
    return ""


def test_layers_that_ignore_fp8_are_refused_on_all_ranks() -> None:
    (before, after), other = run_ranks(2, _said)
    expected = "train.fp8=hybrid: model.architecture=mine builds layers of megatron-core"
    assert before.startswith(expected)
    assert after == before  # rank 0 still has none
    assert other == (before, after)


def _all_of_engine() -> str:
    chunks = begin(run_config(StageSection()), 1).chunks
    _use_engine(chunks)
    return _refusal(chunks)


def test_layers_of_transformer_engine_are_not() -> None:
    assert run_ranks(1, _all_of_engine) == [""]
