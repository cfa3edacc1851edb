"""Losses and gradients of every tensor against a GPT in plain PyTorch, on several layouts."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.config.stages import StageSection
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.kinds import MAIN_PARAM
from tests.distributed import run_ranks
from tests.model import reference
from tests.state.snapshot import Part, assemble, snapshot
from tests.toy import (
    MODEL,
    begin,
    layout,
    loop_over,
    make_uneven,
    micro_batches,
    run_config,
    tokens,
)

BETA1 = 0.9
GPT2 = replace(MODEL, num_layers=2, num_query_groups=None)
LLAMA = replace(
    GPT2,
    num_query_groups=2,
    position_embedding_type="rope",
    normalization="RMSNorm",
    activation="swiglu",
    add_bias_linear=False,
    share_embeddings_and_output_weights=False,
)
QWEN = replace(LLAMA, add_qkv_bias=True, qk_layernorm=True, rotary_percent=0.5)
MODELS = {
    "GPT-2": GPT2,
    "no layers": replace(GPT2, num_layers=0),
    "LLaMA": LLAMA,
    "Qwen": QWEN,
    "scaled rotary positions": replace(
        LLAMA, use_rope_scaling=True, rotary_seq_len_interpolation_factor=2.0
    ),
    "squared ReLU": replace(GPT2, activation="squared_relu"),
    "approximate GELU": replace(GPT2, activation="gelu_tanh"),
    # By import path, from examples/extend.
    "post-norms": replace(
        GPT2, normalization="RMSNorm", architecture="extend.post_norms:PostNorms"
    ),
    "second MLP": replace(LLAMA, architecture="extend.second_mlp:SecondMLP"),
}
TP2 = (2, layout(tp=2))
SP2 = (2, layout(tp=2, sequence_parallel=True))
PP2 = (2, layout(pp=2))
VPP2 = (2, layout(pp=2, pipeline_model_parallel_layout="E|t|t|L"))


def _run(model: ModelConfig, parallel: dict[str, Any], **train: Any) -> RunConfig:
    optimizer = OptimizerSection(adam_beta1=BETA1, clip_grad=0.0)
    return run_config(StageSection(parallel=parallel), model=model, optimizer=optimizer, **train)


def _step(config: RunConfig, world_size: int) -> tuple[list[Part], float, float, list[Part]]:
    """Weights, evaluation loss, training loss, and the state after one step."""
    live = begin(config, world_size)
    make_uneven(live)
    weights = snapshot(live.pieces())
    measured = live.evaluate(micro_batches(config, 0), 1)["loss"]
    loop = loop_over(live, config)
    loop.step(micro_batches(config, 0))
    return weights, measured, loop.ctx.mean_loss(), snapshot(live.pieces())


def _check(config: RunConfig, world_size: int, loss_error: float, gradient_error: float) -> None:
    model, tensors = config.model, logical_tensors(config.model)
    results = run_ranks(world_size, _step, config, world_size)
    before = assemble(tensors, [weights for weights, *_ in results])
    after = assemble(tensors, [state for *_, state in results])

    exact = {
        key: torch.from_numpy(before[key, MAIN_PARAM]).double().requires_grad_() for key in tensors
    }
    shaped = {key: value.reshape(tensors[key].checkpoint_shape) for key, value in exact.items()}
    batch = tokens(0, model.vocab_size, config.train.global_batch_size, config.train.seq_length)
    loss = reference.losses(model, shaped, batch[:, :-1], batch[:, 1:]).mean()
    loss.backward()

    for _, measured, trained, _ in results:
        assert measured == pytest.approx(loss.item(), rel=loss_error)
        assert trained == pytest.approx(loss.item(), rel=loss_error)
    for key, value in exact.items():
        found = torch.from_numpy(after[key, "exp_avg"]).double() / (1 - BETA1)
        error = (found - value.grad).norm() / value.grad.norm()
        assert error < gradient_error, f"gradient of {key}: relative error {error:.1e}"


@pytest.mark.parametrize("name", MODELS)
def test_architectures(name: str) -> None:
    _check(_run(MODELS[name], layout()), 1, loss_error=1e-6, gradient_error=1e-5)


LAYOUTS = {"TP2": TP2, "TP2 SP": SP2, "PP2": PP2, "PP2 VPP2": VPP2}


@pytest.mark.parametrize(
    ("model", "where"),
    [
        *product(["GPT-2", "Qwen"], LAYOUTS),
        *product(["post-norms", "second MLP"], ["TP2 SP", "PP2 VPP2"]),
    ],
)
def test_layouts(model: str, where: str) -> None:
    world_size, parallel = LAYOUTS[where]
    _check(_run(MODELS[model], parallel), world_size, loss_error=1e-6, gradient_error=1e-5)


ODD = {
    "wide padding": replace(GPT2, vocab_size=64, make_vocab_size_divisible_by=48),
    "an empty rank": replace(
        LLAMA, num_query_groups=4, vocab_size=41, make_vocab_size_divisible_by=16
    ),
    "bytes": replace(LLAMA, vocab_size=257, make_vocab_size_divisible_by=128),
}


@pytest.mark.parametrize(
    ("model", "where"),
    [
        ("wide padding", (1, layout())),
        ("wide padding", TP2),
        ("wide padding", PP2),
        ("wide padding", (4, layout(tp=2))),
        ("an empty rank", (4, layout(tp=4))),
        ("an empty rank", (4, layout(tp=2, pp=2))),
        ("bytes", SP2),
    ],
    ids=str,
)
def test_padding_of_the_vocabulary(model: str, where: tuple[int, dict]) -> None:
    """The reference knows no padding: it has no share in loss, logits and gradients."""
    world_size, parallel = where
    _check(_run(ODD[model], parallel), world_size, loss_error=1e-6, gradient_error=1e-5)


@pytest.mark.parametrize("granularity", ["full", "selective"])
def test_recomputed_activations(granularity: str) -> None:
    config = _run(GPT2, layout(tp=2, sequence_parallel=True), recompute_granularity=granularity)
    _check(config, 2, loss_error=1e-6, gradient_error=1e-5)


@pytest.mark.parametrize("where", [(1, layout()), SP2], ids=["one rank", "TP2 SP"])
def test_bf16(where: tuple[int, dict]) -> None:
    world_size, parallel = where
    config = _run(GPT2, parallel, precision="bf16")
    _check(config, world_size, loss_error=5e-3, gradient_error=3e-2)
