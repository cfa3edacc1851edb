"""Context parallelism, all but Transformer Engine's attention, which needs a GPU.

In its place stands one that gathers keys and values. Which rank reads which tokens, what it loses,
how gradients are reduced and how state is cut are the same with either.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from megatron.core import parallel_state, tensor_parallel
from torch.nn import functional

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.model.layers import local
from megatron_grow.model.layers.attention import ScaledDotProductAttention
from tests.distributed import run_ranks
from tests.state.snapshot import Part, assemble, snapshot
from tests.toy import MODEL, Trace, begin, grow, grown_run, layout, train, train_stage

CP2 = layout(context_parallel_size=2)
RUNS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "DP2 to CP2": (2, layout(), CP2 | {"use_distributed_optimizer": False}),
    "CP2 DP2 to PP2 VPP2 CP2": (
        4,
        CP2,
        CP2 | layout(pp=2, virtual_pipeline_model_parallel_size=2),
    ),
}
STEPS = {"until": 4, "train_iters": 8}


class GatheredAttention(ScaledDotProductAttention):
    """Causal attention of this rank's queries to the keys and values of all."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **unused: object,
    ) -> torch.Tensor:
        group = parallel_state.get_context_parallel_group()
        size, rank = group.size(), group.rank()
        # Of 2 x size parts of the sequence, each rank has one from the front, one from the back.
        parts = torch.arange(len(query) * size).chunk(2 * size)
        held = [torch.cat([parts[i], parts[2 * size - 1 - i]]) for i in range(size)]
        gather = tensor_parallel.gather_from_sequence_parallel_region
        keys, values = (gather(x, group=group).permute(1, 2, 0, 3) for x in (key, value))
        context = functional.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            keys,
            values,
            attn_mask=held[rank][:, None] >= torch.cat(held),
            enable_gqa=True,
        )
        return context.permute(2, 0, 1, 3).flatten(2)


def allow_context_parallelism() -> None:
    """On a rank without Transformer Engine."""
    local.ScaledDotProductAttention = GatheredAttention  # type: ignore[misc]
    ParallelConfig.check = lambda *args: None  # type: ignore[method-assign]


def train_without_transformer_engine(
    config: RunConfig, world_size: int
) -> tuple[list[float], list[Part]]:
    """On a rank: losses, and the state at the end."""
    allow_context_parallelism()
    trace, live = Trace(), begin(config, world_size)
    train_stage(live, config, trace)
    live = grow(live, config, world_size)
    train_stage(live, config, trace)
    return trace.losses, snapshot(live.pieces())


@pytest.fixture(scope="module")
def one_rank() -> list[float]:
    return run_ranks(1, train, grown_run(layout(), layout(), **STEPS), 1)[0].losses


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_those_of_one_rank(name: str, one_rank: list[float]) -> None:
    world_size, before, after = RUNS[name]
    config = grown_run(before, after, **STEPS)
    ranks = run_ranks(world_size, train_without_transformer_engine, config, world_size)
    for losses, _ in ranks:
        assert losses == pytest.approx(one_rank, rel=1e-5)
    assemble(logical_tensors(MODEL), [state for _, state in ranks])  # each value has one owner
