"""The axis table against megatron-core's own description of its shards, on real ranks."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import prod, sqrt

import pytest
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.model.architectures import architecture_of, logical_tensors
from megatron_grow.parallel import process_groups
from megatron_grow.state.axes import HIDDEN, Axis, Role
from megatron_grow.state.boxes import Box, fold
from megatron_grow.state.tensors import Constant, LogicalTensor, Normal
from tests.distributed import run_ranks
from tests.toy import MODEL, TRAIN

GQA = replace(MODEL, num_layers=2)
MODELS = {
    "grouped queries, biases, tied": GQA,
    "multi-head, untied": replace(
        GQA, num_query_groups=None, share_embeddings_and_output_weights=False
    ),
    "llama": replace(
        GQA,
        activation="swiglu",
        normalization="RMSNorm",
        position_embedding_type="rope",
        add_bias_linear=False,
        share_embeddings_and_output_weights=False,
    ),
    "qwen": replace(
        GQA,
        activation="swiglu",
        normalization="RMSNorm",
        position_embedding_type="rope",
        add_bias_linear=False,
        add_qkv_bias=True,
        qk_layernorm=True,
    ),
    "gated with biases, norms with biases": replace(GQA, activation="swiglu", qk_layernorm=True),
    "head size of its own, squared ReLU": replace(
        GQA, activation="squared_relu", kv_channels=12, add_bias_linear=False
    ),
    "no layers": replace(GQA, num_layers=0),
}
LAYOUTS = {"DP4": (1, 1), "TP2 DP2": (2, 1), "PP2 DP2": (1, 2), "TP2 PP2": (2, 2)}
CASES = [
    (layout, name)
    for layout, (_, pp) in LAYOUTS.items()
    for name, model in MODELS.items()
    if model.num_layers or pp == 1
]

Chunk = tuple[str, tuple[int, ...], Box]
"""Key, shape of the whole tensor, and what one rank holds, in the checkpoint's axes."""


def megatron_chunks() -> dict[tuple[str, str], tuple[int, int, int, set[Chunk]]]:
    """On a rank: its tensor and pipeline rank, its parameters, and megatron-core's chunks."""
    found = {}
    for layout, (tp, pp) in LAYOUTS.items():
        parallel = ParallelConfig(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
        process_groups.set_up(parallel, seed=1)
        for name in (name for of, name in CASES if of == layout):
            [gpt] = architecture_of(MODELS[name]).build(MODELS[name], parallel, TRAIN)
            chunks = set()
            for entry in gpt.sharded_state_dict().values():
                parts = entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]
                chunks |= {chunk(part) for part in parts if isinstance(part, ShardedTensor)}
            found[layout, name] = (
                parallel_state.get_tensor_model_parallel_rank(),
                parallel_state.get_pipeline_model_parallel_rank(),
                sum(parameter.numel() for parameter in gpt.parameters()),
                chunks,
            )
    return found


def chunk(part: ShardedTensor) -> Chunk:
    extents = (*(1,) * part.prepend_axis_num, *part.local_shape)
    box = tuple((o, o + size) for o, size in zip(part.global_offset, extents, strict=True))
    return part.key, tuple(part.global_shape), box


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return run_ranks(4, megatron_chunks)


def table_chunks(
    tensors: dict[str, LogicalTensor], layers: range, tp: int, rank: int
) -> set[Chunk]:
    """What the table says that tensor-parallel ``rank`` of ``tp`` holds of ``layers``."""
    chunks = set()
    for tensor in tensors.values():
        extents = []
        for axis in tensor.axes:
            if axis.name == "layer":
                extents.append([(layer, layer + 1) for layer in layers])
            elif axis.name == "gate_up":  # megatron-core stores the two apart
                extents.append([(0, 1), (1, 2)])
            elif axis.name in ("kv_group", "ffn", "vocab"):
                extents.append([(rank * axis.size // tp, (rank + 1) * axis.size // tp)])
            else:
                extents.append([(0, axis.size)])
        chunks |= {
            (tensor.key, tensor.checkpoint_shape, coarse)
            for box in product(*extents)
            for _, coarse in fold(tensor.shape, box, tensor.groups)
        }
    return chunks


@pytest.mark.parametrize(("layout", "name"), CASES)
def test_keys_shapes_and_offsets_are_megatrons(layout: str, name: str, ranks: list[dict]) -> None:
    (tp, pp), model = LAYOUTS[layout], MODELS[name]
    tensors = logical_tensors(model)
    everything = set()
    for rank in ranks:
        tp_rank, pp_rank, _, chunks = rank[layout, name]
        depth = model.num_layers // pp
        expected = table_chunks(tensors, range(pp_rank * depth, (pp_rank + 1) * depth), tp, tp_rank)
        # A pipeline stage holds all of its layers, and of the rest only what its place calls for.
        assert chunks <= expected
        in_layers = {c for c in expected if c[0].startswith("decoder.layers.")}
        assert in_layers <= chunks
        if pp == 1:
            assert chunks == expected
        everything |= chunks
    union = [table_chunks(tensors, range(model.num_layers), tp, r) for r in range(tp)]
    assert everything == set().union(*union)


@pytest.mark.parametrize("name", MODELS)
def test_the_elements_are_all_parameters(name: str, ranks: list[dict]) -> None:
    model = MODELS[name]
    elements = sum(prod(tensor.shape) for tensor in logical_tensors(model).values())
    assert elements == ranks[0]["DP4", name][2]


def test_fresh_values_follow_gpt2() -> None:
    """Residual outputs get std / sqrt(2 L) with L the *target's* depth; norms 1; biases 0."""
    tensors = logical_tensors(replace(MODEL, num_layers=2), target_depth=50)
    for key, tensor in tensors.items():
        if key.endswith(("linear_proj.weight", "linear_fc2.weight")):
            assert tensor.init == Normal(0.02 / sqrt(2 * 50))
        elif "norm" in key:
            assert tensor.init == Constant(1.0 if key.endswith("weight") else 0.0)
        else:
            assert tensor.init == (Normal(0.02) if key.endswith("weight") else Constant(0.0))


def test_a_branch_ends_in_its_projection_and_bias() -> None:
    ends = {k for k, t in logical_tensors(MODEL).items() if t.ends_branch}
    assert ends == {
        f"decoder.layers.{name}"
        for name in (
            "self_attention.linear_proj.weight",
            "self_attention.linear_proj.bias",
            "mlp.linear_fc2.weight",
            "mlp.linear_fc2.bias",
        )
    }


def test_inputs_are_consumed_and_outputs_produced() -> None:
    """The last axes of a matrix are what it reads; those before, and vectors, what it writes.

    The last norm's stands for the columns of a tied head.
    """
    model = MODELS["gated with biases, norms with biases"]
    for key, tensor in logical_tensors(model).items():
        roles = {axis.role for axis in tensor.axes if axis.role is not Role.INDEX}
        is_projection = "linear_" in key and key.endswith(".weight")
        tied = "final_layernorm" in key
        writes = Role.CONSUMES if tied else Role.PRODUCES
        assert roles == ({Role.PRODUCES, Role.CONSUMES} if is_projection else {writes})
    untied = logical_tensors(MODELS["llama"])
    assert untied["output_layer.weight"].axes[1].role is Role.CONSUMES
    assert untied["embedding.word_embeddings.weight"].axes[1].role is Role.PRODUCES
    assert untied["decoder.final_layernorm.weight"].axes[0].role is Role.PRODUCES


def test_a_tensor_that_has_an_axis_twice_is_refused() -> None:
    """Rows and columns of one name would be drawn alike: both as columns, which share weights."""
    axis = Axis(HIDDEN, 8, Role.PRODUCES)
    with pytest.raises(
        ValueError, match=r"dense\.weight has two axes of one name \(hidden, hidden\)"
    ):
        LogicalTensor(
            "dense.weight", (axis, replace(axis, role=Role.CONSUMES)), (1, 1), Normal(0.02)
        )
