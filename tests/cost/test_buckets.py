"""Buckets by formula against those of megatron-core's gradient buffers."""

from __future__ import annotations

from typing import Any

from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.cost.buckets import buckets
from megatron_grow.cost.step import Placement
from megatron_grow.optim.optimizers import optimizer_of
from tests.distributed import run_ranks
from tests.growth.test_experts import EXPERTS, shared
from tests.toy import MODEL, begin, layout, run_config

CUT: dict[str, Any] = {"overlap_grad_reduce": True, "bucket_size": 1}
"""Each parameter is a bucket, so that the order in which layers build theirs does not matter."""
CASES = {
    "one": (layout(), MODEL),
    "cut": (layout(**CUT), MODEL),
    "PP": (layout(pp=2, **CUT), MODEL),
    "chunks": (layout(pp=2, virtual_pipeline_model_parallel_size=2, **CUT), MODEL),
    "experts": (shared(1, 2), EXPERTS),
}
RANKS = 4


def _buckets(configs: dict[str, RunConfig]) -> dict[str, list[list[int]]]:
    """On a rank: parameters of each bucket, of those that all ranks share and of experts."""
    found = {}
    for name, config in configs.items():
        live = begin(config, RANKS)
        found[name] = [
            [
                sum(param.numel() for param in bucket.params)
                for chunk in reversed(live.chunks)
                for buffer in getattr(chunk, kind)
                for bucket in buffer.buckets
            ]
            for kind in ("buffers", "expert_parallel_buffers")
        ]
        live.release()
    return found


def test_buckets_are_those_of_megatron_core() -> None:
    configs = {
        name: run_config(StageSection(parallel=parallel), model=model)
        for name, (parallel, model) in CASES.items()
    }
    ranks = run_ranks(RANKS, _buckets, configs)
    for name, config in configs.items():
        [stage] = config.resolve(RANKS)
        optimizer = optimizer_of(config.optimizer)
        placed = Placement(stage.model, stage.parallel, RANKS, "fp32", optimizer)
        pipeline = stage.parallel.pipeline_model_parallel_size
        for rank, real in enumerate(ranks):
            told = [
                [
                    sum(each.numel for each in bucket)
                    for bucket in buckets(placed, rank * pipeline // RANKS, of_experts=of_experts)
                ]
                for of_experts in (False, True)
            ]
            for mine, theirs in zip(told, real[name], strict=True):
                assert sorted(mine) == sorted(theirs), (name, rank)
                assert mine[-1:] == theirs[-1:], (name, rank)
