"""The sizes of layers in a step: those of plain numpy, the same on every layout."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.config.stages import StageSection
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.train.layer_numbers import LayerNumbers, Numbers
from tests import bert
from tests.distributed import run_ranks
from tests.growth.test_experts import EXPERTS
from tests.growth.test_experts import shared as experts_layout
from tests.model import reference
from tests.state.snapshot import Part, assemble, snapshot
from tests.toy import MODEL, TRAIN, begin, layout, loop_over, micro_batches, run_config, tokens

STEPS = 3
BETA1 = 0.9
GPT = replace(MODEL, vocab_size=120)
"""Of which two tensor-parallel ranks have padding: 120 rows of 128."""
POOLED = bert.bert(norm_position="pre", pool_size=2)
UNLIKE = replace(EXPERTS, options={"experts": 4, "dense_layers": 1})
SHARED = replace(GPT, layer_sharing="2x2")
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
EIGHT = layout(tp=2, pp=2, sequence_parallel=True, **OVERLAP)
MODELS = {
    "a GPT": GPT,
    "shared layers": replace(GPT, layer_sharing="2x2"),
    "unlike layers of experts": replace(EXPERTS, options={"experts": 4, "dense_layers": 1}),
    "a second MLP": replace(GPT, architecture="extend.second_mlp:SecondMLP"),
    "a BERT whose tokens share places": bert.bert(norm_position="pre", pool_size=2),
}
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
INTERLEAVED = layout(pp=2, virtual_pipeline_model_parallel_size=2)
LAYOUTS = {
    "TP2 PP2 DP2": ("a GPT", 8, layout(tp=2, pp=2, sequence_parallel=True, **OVERLAP)),
    "DP2, replicated optimizer": ("a GPT", 2, layout(use_distributed_optimizer=False)),
    "PP2, interleaved, recomputed": ("a GPT", 2, INTERLEAVED),
    "a pipeline stage without layers": (
        "a GPT",
        2,
        layout(pp=2, pipeline_model_parallel_layout="E|t*4L"),
    ),
    "PP2": ("shared layers", 2, layout(pp=2)),
    "EP2": ("unlike layers of experts", 2, experts_layout(1, 2)),
    "TP2": ("a BERT whose tokens share places", 2, layout(tp=2)),
}


def run(model: ModelConfig, parallel: dict[str, Any], **train: Any) -> RunConfig:
    optimizer = OptimizerSection(lr=1e-2, adam_beta1=BETA1, clip_grad=0.0)
    stage = StageSection(parallel=parallel)
    return run_config(stage, model=model, optimizer=optimizer, **train)


@dataclass
class Found:
    """On a rank."""

    numbers: list[Numbers] = field(default_factory=list)
    """Of each step."""
    states: list[list[Part]] = field(default_factory=list)
    """Before the first, and after each."""


def train(config: RunConfig, measured: bool = True) -> Found:
    found, live = Found(), begin(config, dist.get_world_size())
    parts = LayerNumbers(lambda _: True, lambda _, numbers: found.numbers.append(numbers))
    loop = loop_over(live, config, others=[parts] if measured else [])
    reads = bert.micro_batches if config.model.architecture == "bert" else micro_batches
    batches = reads(config, 0)
    found.states.append(snapshot(live.pieces()))
    for _ in range(STEPS):
        loop.step(batches)
        found.states.append(snapshot(live.pieces()))
    loop.end()
    live.release()
    return found


def train_all(configs: dict[str, RunConfig]) -> dict[str, Found]:
    return {name: train(config) for name, config in configs.items()}


@pytest.fixture(scope="module")
def alone() -> dict[str, Found]:
    """Each model on one rank."""
    configs = {name: run(model, layout()) for name, model in MODELS.items()}
    return run_ranks(1, train_all, configs)[0]


def flat(numbers: Numbers) -> dict[tuple[str, str, int | None], Any]:
    found = {}
    for quantity, named in numbers.items():
        for name, value in named.items():
            each = dict(enumerate(value)) if isinstance(value, list) else {None: value}
            found |= {(quantity, name, n): each[n] for n in each if each[n] is not None}
    return found


def on_layout(name: str) -> RunConfig:
    model, _, parallel = LAYOUTS[name]
    recomputed = {"recompute_granularity": "full"} if "recomputed" in name else {}
    return run(MODELS[model], parallel, micro_batch_size=2, **recomputed)


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_measures_the_same(alone: dict[str, Found], name: str) -> None:
    model, world_size, _ = LAYOUTS[name]
    ranks = run_ranks(world_size, train, on_layout(name))
    assert all(rank.numbers == ranks[0].numbers for rank in ranks)
    for expected, found in zip(alone[model].numbers, ranks[0].numbers, strict=True):
        # Gradients are sums in another order, whose errors Adam takes to the weights.
        assert flat(found) == pytest.approx(flat(expected), rel=2e-4, abs=1e-9)


def with_and_without(config: RunConfig) -> list[list[bytes]]:
    """All that a rank holds at the end."""
    found = train(config), train(config, measured=False)
    return [[part.values.tobytes() for part in each.states[-1]] for each in found]


def test_training_is_the_same_to_the_bit_without_it() -> None:
    config = on_layout("PP2, interleaved, recomputed")
    config.train.precision = "bf16"
    for measured, not_measured in run_ranks(2, with_and_without, config):
        assert measured == not_measured


# One rank's, by numpy


def rms(values: np.ndarray, stacked: bool) -> Any:
    squares = values.astype(np.float64) ** 2
    if not stacked:
        return pytest.approx(np.sqrt(squares.mean()), rel=1e-5)
    return pytest.approx(np.sqrt(squares.reshape(len(squares), -1).mean(1)).tolist(), rel=1e-5)


def test_weights_updates_and_gradients_are_those_of_numpy(alone: dict[str, Found]) -> None:
    found, tensors = alone["a GPT"], logical_tensors(GPT)
    states = [assemble(tensors, [parts]) for parts in found.states]
    for numbers, before, after in zip(found.numbers, states[:-1], states[1:], strict=True):
        for key, tensor in tensors.items():
            kind = "gain" if tensor.norm == "gain" else "weight"
            weight, was = after[key, "main_param"], before[key, "main_param"]
            # What the moment has taken in: there is no clipping.
            gradient = (after[key, "exp_avg"] - BETA1 * before[key, "exp_avg"]) / (1 - BETA1)
            assert numbers[kind][key] == rms(weight, tensor.stacked)
            assert numbers["update"][key] == rms(weight - was, tensor.stacked)
            assert numbers["gradient"][key] == rms(gradient, tensor.stacked)
        assert {*numbers["gain"]} | {*numbers["weight"]} == {*tensors} == {*numbers["update"]}


def test_layers_that_a_tensor_is_not_in_have_no_number_of_it(alone: dict[str, Found]) -> None:
    numbers = alone["unlike layers of experts"].numbers[0]
    dense, sparse = (
        numbers["weight"][f"decoder.layers.mlp.{name}.weight"]
        for name in ("linear_fc1", "experts.experts.linear_fc1")
    )
    assert isinstance(dense, list) and isinstance(sparse, list)
    assert [each is None for each in (*dense, *sparse)] == [False, True, True, False]


def activations(weights: dict[str, torch.Tensor], text: torch.Tensor) -> dict[str, list[float]]:
    """What a GPT in plain PyTorch computes, by the name of the place, layer by layer."""

    def size(x: torch.Tensor) -> float:
        return float(x.double().square().mean().sqrt())

    names = ("attention", "mlp", "residual_stream", "entropy")
    found: dict[str, list[float]] = {name: [] for name in names}
    length = text.shape[1]
    x = weights["embedding.word_embeddings.weight"][text]
    x = x + weights["embedding.position_embeddings.weight"][:length]
    found["embedding"] = [size(x)]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    for layer in range(GPT.num_layers):
        mine = reference.layer_of(weights, "decoder.layers.", layer)
        normed = reference.norm(GPT, mine, "self_attention.linear_qkv.layer_norm", x)
        branch = reference.attention(GPT, mine, normed, future)
        found["attention"].append(size(branch))
        found["entropy"].append(entropy(mine, normed, future))
        x = x + branch
        normed = reference.norm(GPT, mine, "mlp.linear_fc1.layer_norm", x)
        branch = reference.feed_forward(GPT, mine, "mlp", normed)
        found["mlp"].append(size(branch))
        x = x + branch
        found["residual_stream"].append(size(x))
    return found


def test_an_architecture_of_ones_own_has_its_own_places(alone: dict[str, Found]) -> None:
    for numbers in alone["a second MLP"].numbers:
        second, first = (numbers["activation"][name] for name in ("second_mlp", "mlp"))
        assert isinstance(second, list) and len(second) == GPT.num_layers
        assert second != first and all(second)


def entropy(layer: dict[str, torch.Tensor], x: torch.Tensor, future: torch.Tensor) -> float:
    """Of the attention of all tokens: of so few each is looked at."""
    per_group = GPT.num_attention_heads // GPT.query_groups
    rows = reference.linear(layer, "self_attention.linear_qkv", x)
    rows = rows.unflatten(2, (GPT.query_groups, per_group + 2, GPT.head_dim))
    scores = torch.einsum("bsghd,btgd->bghst", rows[..., :per_group, :], rows[..., per_group, :])
    shares = (scores / GPT.head_dim**0.5).masked_fill(future, -torch.inf).softmax(-1)
    return float(-(shares * shares.clamp(min=1e-300).log()).sum(-1).mean())


def test_activations_are_those_of_a_model_in_plain_pytorch(alone: dict[str, Found]) -> None:
    found, tensors = alone["a GPT"], logical_tensors(GPT)
    for step, numbers in enumerate(found.numbers):
        state = assemble(tensors, [found.states[step]])
        weights = {
            key: torch.from_numpy(state[key, "main_param"]).double().view(tensor.checkpoint_shape)
            for key, tensor in tensors.items()
        }
        text = tokens(step, 120, TRAIN.global_batch_size, TRAIN.seq_length)[:, :-1]
        expected = activations(weights, text)
        found_here = {
            **numbers["activation"],
            "embedding": [numbers["activation"]["embedding"]],
            "entropy": numbers["entropy"]["attention"],
        }
        assert {*found_here} == {*expected}
        for name, sizes in expected.items():
            assert found_here[name] == pytest.approx(sizes, rel=1e-5), name
