"""Every parameter is on the device that this process computes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.model.architectures import architecture_of
from megatron_grow.model.engine_config import transformer_config
from megatron_grow.parallel import cpu, process_groups
from tests.distributed import run_ranks
from tests.toy import MODEL, TRAIN

LEARNED = replace(MODEL, num_layers=1)
ROTARY = replace(LEARNED, position_embedding_type="rope", share_embeddings_and_output_weights=False)


def _places(model: ModelConfig, parallel: ParallelConfig, precision: str) -> dict[str, Any]:
    """Where the parameters and buffers of a model are that is built for another device."""
    elsewhere = torch.device("meta")
    cpu.device = lambda: elsewhere  # this process ends after the test
    process_groups.set_up(parallel, seed=1)
    chunks = architecture_of(model).build(model, parallel, replace(TRAIN, precision=precision))
    tensors = [*chunks[0].named_parameters(), *chunks[0].named_buffers()]
    return {name: (str(t.device), str(t.dtype)) for name, t in tensors}


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
@pytest.mark.parametrize("model", [LEARNED, ROTARY], ids=["learned", "rotary"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_all_parameters_are_on_the_device(
    model: ModelConfig, precision: str, dtype: str, ranks: int
) -> None:
    parallel = ParallelConfig(tensor_model_parallel_size=ranks)
    for places in run_ranks(ranks, _places, model, parallel, precision):
        assert set(places.values()) == {("meta", f"torch.{dtype}")}, places


def test_no_message_between_pipeline_ranks_waits_for_the_gpu() -> None:
    engine = transformer_config(MODEL, ParallelConfig(pipeline_model_parallel_size=2), TRAIN)
    assert not engine.batch_p2p_sync
