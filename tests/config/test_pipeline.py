"""Which rank gets which layers, and what is refused, against megatron-core's own answers."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from megatron.core import parallel_state
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import LayerType
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.pipeline import chunk_layers, parse_layout
from megatron_grow.inputs.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:full scope is deprecated")

LETTERS = {LayerType.embedding: "E", LayerType.decoder: "t", LayerType.loss: "L"}
LAYOUTS = [
    "E|t|t|L",
    "Ett|ttL",
    "Et*3|(tt|)*29,tL",
    "E,t|(t|)*2,(tt|)*2,L",
    "(E|t)*1|tL",
    "Et||t*2|L",
    "E|t|t|t|t|||L",
    "Et*12|L",
    "Et|(t|t)*2tL",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_read_as_megatron_reads_them(layout: str) -> None:
    theirs = PipelineParallelLayerLayout.parse_str_to_list(layout)
    assert parse_layout(layout) == ["".join(LETTERS[kind] for kind in part) for part in theirs]


def megatron_layers(
    fields: dict[str, Any], num_layers: int, monkeypatch: pytest.MonkeyPatch
) -> list[list[range]]:
    """Layers by pipeline rank and chunk; raises whatever megatron-core raises."""
    ranks = fields["pipeline_model_parallel_size"]
    virtual = fields.get("virtual_pipeline_model_parallel_size")
    if virtual is not None and ranks == 1:
        raise ValueError("refused by initialize_model_parallel")
    config = TransformerConfig(
        num_layers=num_layers,
        hidden_size=8,
        num_attention_heads=1,
        pipeline_dtype=float,
        output_layer_init_method=id,
        **fields,
    )
    chunks = config.virtual_pipeline_model_parallel_size
    if chunks is not None and ranks == 1:
        raise ValueError("refused by initialize_model_parallel")
    name = "get_virtual_pipeline_model_parallel_world_size"
    monkeypatch.setattr(parallel_state, name, lambda: chunks)
    layers: list[list[range]] = []
    for rank in range(ranks):
        monkeypatch.setattr(parallel_state, "get_pipeline_model_parallel_rank", lambda r=rank: r)
        layers.append([])
        for chunk in range(chunks or 1):
            stage = None if chunks is None else chunk
            start = get_transformer_layer_offset(config, stage, rank)
            layers[-1].append(range(start, start + get_num_layers_to_build(config, stage, rank)))
    return layers


COUNTED = [
    {
        "pipeline_model_parallel_size": ranks,
        "virtual_pipeline_model_parallel_size": chunks,
        "account_for_embedding_in_pipeline_split": embedding,
        "account_for_loss_in_pipeline_split": loss,
        "num_layers_in_first_pipeline_stage": first,
        "num_layers_in_last_pipeline_stage": last,
    }
    for ranks, chunks, embedding, loss, first, last in product(
        (1, 2, 3), (None, 2, 3), (False, True), (False, True), (None, 1, 2), (None, 2)
    )
]
EXPLICIT = [
    {
        "pipeline_model_parallel_size": ranks,
        "virtual_pipeline_model_parallel_size": chunks,
        "pipeline_model_parallel_layout": layout,
    }
    for ranks, chunks, layout in product((1, 2, 4), (None, 2, 4), LAYOUTS)
]


def tiles(layers: list[list[range]], num_layers: int) -> bool:
    """Whether the chunks, in the model's order, hold each layer once."""
    chunks = [layers[rank][chunk] for chunk in range(len(layers[0])) for rank in range(len(layers))]
    return [layer for chunk in chunks for layer in chunk] == list(range(num_layers))


def stricter(fields: dict[str, Any], num_layers: int) -> bool:
    """What we refuse and megatron-core does not: pipelines in which nothing is cut."""
    one_rank = fields["pipeline_model_parallel_size"] == 1
    return num_layers == 0 or (one_rank and any("stage" in key and fields[key] for key in fields))


@pytest.mark.parametrize("num_layers", [0, 1, 2, 3, 4, 5, 6, 8, 12])
def test_layers_are_where_megatron_has_them(
    num_layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What we accept it accepts, and has the same layers; what we refuse would lose some."""
    accepted = 0
    for fields in COUNTED + EXPLICIT:
        try:
            theirs = megatron_layers(fields, num_layers, monkeypatch)
        except Exception:
            theirs = None
        try:
            ours = chunk_layers(ParallelConfig(**fields), num_layers, "stage")
        except UserError as error:
            assert "\n" not in str(error)
            assert theirs is None or not tiles(theirs, num_layers) or stricter(fields, num_layers)
        else:
            assert ours == theirs, fields
            assert tiles(ours, num_layers)
            accepted += 1
    assert accepted
