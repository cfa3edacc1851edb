"""What a layout says of itself, and the line with which one that cannot work is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.inputs.errors import UserError
from tests.toy import MODEL, layout, run_config

VPP2 = {"virtual_pipeline_model_parallel_size": 2}
EMBEDDING = {"account_for_embedding_in_pipeline_split": True}
LOSS = {"account_for_loss_in_pipeline_split": True}


def first(layers: int) -> dict[str, int]:
    return {"num_layers_in_first_pipeline_stage": layers}


def last(layers: int) -> dict[str, int]:
    return {"num_layers_in_last_pipeline_stage": layers}


def by_hand(stages: str) -> dict[str, str]:
    return {"pipeline_model_parallel_layout": stages}


@pytest.mark.parametrize(
    ("parallel", "text"),
    [
        (layout(), "TP1 PP1 DP8"),
        (layout(tp=2, pp=2, sequence_parallel=True), "TP2 PP2 DP2 SP"),
        (layout(tp=2, pp=2, **VPP2), "TP2 PP2 VPP2 DP2"),
        (layout(pp=2, virtual_pipeline_model_parallel_size=1), "TP1 PP2 DP4"),
        (layout(pp=4, **first(1), **last(3)), "TP1 PP4 first=1 last=3 DP2"),
        (layout(pp=2, **VPP2, **EMBEDDING, **LOSS), "TP1 PP2 VPP2 +E +L DP4"),
        (layout(pp=2, **by_hand("E|t|t|tL")), "TP1 PP2 VPP2 E|t|t|tL DP4"),
        (layout(tp=2, context_parallel_size=2), "TP2 PP1 CP2 DP2"),
    ],
)
def test_describe(parallel: dict[str, Any], text: str) -> None:
    assert ParallelConfig(**parallel).describe(8) == text


# Layout, layers, what the line must name; on 4 ranks, with 8 micro-batches on each pipeline.
MISTAKES: dict[str, tuple[dict[str, Any], int, list[str]]] = {
    "chunks without a pipeline": (
        layout(**VPP2),
        4,
        ["virtual_pipeline_model_parallel_size=2", "pipeline_model_parallel_size", "at least 2"],
    ),
    "no chunks": (
        layout(pp=2, virtual_pipeline_model_parallel_size=0),
        4,
        ["virtual_pipeline_model_parallel_size=0", "at least 1"],
    ),
    "layers that do not divide": (
        layout(pp=4),
        6,
        ["pipeline_model_parallel_size=4", "num_layers=6", "pipeline_model_parallel_layout"],
    ),
    "layers that do not divide into chunks": (
        layout(pp=2, **VPP2),
        6,
        ["virtual_pipeline_model_parallel_size=2", "3 layers", "rank 0", "multiple of 2"],
    ),
    "embedding counted in vain": (
        layout(pp=2, **EMBEDDING),
        4,
        ["pipeline_model_parallel_size=2", "num_layers=4", "account_for_embedding"],
    ),
    "first stage leaves nothing": (
        layout(pp=2, **first(4)),
        4,
        ["num_layers_in_first_pipeline_stage=4", "num_layers=4", "0 layers are left"],
    ),
    "first stage leaves what does not divide": (
        layout(pp=4, **first(1)),
        6,
        ["num_layers_in_first_pipeline_stage=1", "num_layers=6", "5 layers", "3 other"],
    ),
    "ends that do not add up": (
        layout(pp=2, **first(1), **last(2)),
        4,
        ["first_pipeline_stage=1", "num_layers_in_last_pipeline_stage=2", "to num_layers=4"],
    ),
    "one end too many for chunks": (
        layout(pp=2, **VPP2, **first(2), **last(2)),
        4,
        ["num_layers_in_first_pipeline_stage", "virtual_pipeline_model_parallel_size=2", "leave"],
    ),
    "two ways to be uneven": (
        layout(pp=2, **first(1), **LOSS),
        4,
        ["num_layers_in_first_pipeline_stage", "account_for_loss_in_pipeline_split", "leave"],
    ),
    "a layout and another way to be uneven": (
        layout(pp=2, **by_hand("Et|tL"), **LOSS),
        2,
        ["pipeline_model_parallel_layout=Et|tL", "account_for_loss_in_pipeline_split", "leave"],
    ),
    "a layout of other letters": (
        layout(pp=2, **by_hand("Etx|tmL")),
        2,
        ["pipeline_model_parallel_layout=Etx|tmL", "'m', 'x'", "t (a layer)"],
    ),
    "a layout with an open group": (
        layout(pp=2, **by_hand("E(t|t*2L")),
        3,
        ["pipeline_model_parallel_layout=E(t|t*2L", "'('", "(...)*n"],
    ),
    "a layout without loss": (
        layout(pp=2, **by_hand("Et|t")),
        2,
        ["pipeline_model_parallel_layout=Et|t", "end with L"],
    ),
    "an empty layout": (
        layout(pp=2, **by_hand("")),
        2,
        ["pipeline_model_parallel_layout=", "begin with E"],
    ),
    "a layout of too few stages": (
        layout(pp=2, **by_hand("Et|t|L")),
        2,
        [
            "pipeline_model_parallel_layout=Et|t|L",
            "3 pipeline stages",
            "pipeline_model_parallel_size=2",
        ],
    ),
    "a layout of other chunks": (
        layout(pp=2, **by_hand("Et|tL"), **VPP2),
        2,
        ["pipeline_model_parallel_layout=Et|tL", "virtual_pipeline_model_parallel_size=2", "be 1"],
    ),
    "a layout of another depth": (
        layout(pp=2, **by_hand("Et|tL")),
        4,
        ["pipeline_model_parallel_layout=Et|tL", "2 layers", "num_layers=4"],
    ),
    "a layout without a pipeline": (
        layout(**by_hand("EtL")),
        1,
        ["pipeline_model_parallel_layout=EtL", "pipeline_model_parallel_size", "at least 2"],
    ),
    "ranks that do not divide": (
        layout(tp=2, context_parallel_size=4),
        4,
        ["tensor_model_parallel_size=2", "context_parallel_size=4", "4 ranks"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str) -> None:
    parallel, layers, expected = MISTAKES[name]
    config = run_config(
        StageSection(parallel=parallel),
        model=replace(MODEL, num_layers=layers),
        global_batch_size=16,
    )
    with pytest.raises(UserError) as mistake:
        config.resolve(4)
    line = str(mistake.value)
    assert "\n" not in line
    for text in expected:
        assert text in line, line


def test_interleaved_micro_batches() -> None:
    """Their number must be a multiple of the pipeline's ranks, which no other schedule asks for."""
    for batch, virtual in ((6, 1), (8, 1), (8, 2)):
        parallel = layout(pp=2, virtual_pipeline_model_parallel_size=virtual)
        config = run_config(StageSection(parallel=parallel), global_batch_size=batch)
        assert len(config.resolve(4)) == 1
    config = run_config(StageSection(parallel=layout(pp=2, **VPP2)), global_batch_size=6)
    with pytest.raises(UserError) as mistake:
        config.resolve(4)
    for text in ("global_batch_size=6", "micro_batch_size=1 x data-parallel size 2 x pipeline"):
        assert text in str(mistake.value)


def test_context_parallelism(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own conditions, without the library that it needs and with it."""
    stage = StageSection(parallel=layout(tp=2, sequence_parallel=True, context_parallel_size=2))
    (resolved,) = run_config(stage).resolve(4)
    check = resolved.parallel.check_context
    with pytest.raises(UserError, match=r"^here: .*=2 needs Transformer Engine, .* must be 1$"):
        check("local", 16, "here")
    monkeypatch.setattr("megatron_grow.config.parallel.find_spec", lambda name: object())
    with pytest.raises(UserError, match=r"train\.transformer_impl=.*engine, it is local$"):
        check("local", 16, "here")
    with pytest.raises(UserError, match=r"context_parallel_size=2 needs .*=14 .* multiple of 4$"):
        check("transformer_engine", 14, "here")
    check("transformer_engine", 16, "here")


def test_recomputed_layers() -> None:
    """Pieces of two layers do not fit a stage of three."""
    recompute = {"recompute_granularity": "full", "recompute_num_layers": 2}
    uneven = StageSection(parallel=layout(pp=2, **first(1)))
    with pytest.raises(UserError) as mistake:
        run_config(uneven, **recompute).resolve(2)
    for text in ("train.recompute_num_layers=2", "the 1 layers"):
        assert text in str(mistake.value)
    assert run_config(StageSection(parallel=layout(pp=2)), **recompute).resolve(2)
