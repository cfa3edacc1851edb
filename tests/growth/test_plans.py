"""Every operator against a GPT in plain PyTorch, in fp64: logits, and gradients tensor by tensor.

The growth is applied to the whole model at once, without ranks: what is tested is the algebra.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.stages import GrowSection
from megatron_grow.growth.plan import Plan, growth
from megatron_grow.state.axes import logical_tensors
from megatron_grow.state.boxes import Box, full, slices
from megatron_grow.state.live import MAIN_PARAM
from megatron_grow.state.maps import materialise
from tests.model import reference

GPT2 = ModelConfig(
    num_layers=2,
    hidden_size=8,
    num_attention_heads=4,
    kv_channels=4,
    ffn_hidden_size=12,
    vocab_size=40,
    make_vocab_size_divisible_by=8,
    max_position_embeddings=8,
)
UNTIED = replace(GPT2, share_embeddings_and_output_weights=False, activation="squared_relu")
LLAMA = replace(
    UNTIED,
    num_query_groups=2,
    position_embedding_type="rope",
    normalization="RMSNorm",
    activation="swiglu",
    add_bias_linear=False,
)
TIED_LLAMA = replace(LLAMA, share_embeddings_and_output_weights=True, add_qkv_bias=True)
MODELS = {"GPT-2": GPT2, "untied": UNTIED, "LLaMA": LLAMA, "tied LLaMA": TIED_LLAMA}

Weights = dict[str, torch.Tensor]


def weights_of(model: ModelConfig, seed: int = 0) -> Weights:
    """Random ones, in which no norm is one and no bias zero; (checkpoint shapes)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: (
            torch.randn(tensor.checkpoint_shape, generator=generator, dtype=torch.float64) * 0.4
            + (1.0 if tensor.norm == "gain" else 0.0)
        )
        for key, tensor in logical_tensors(model).items()
    }


def applied(plan: Plan, source: ModelConfig, values: Weights, kind: str) -> Weights:
    """The plan, applied to whole tensors."""
    before = logical_tensors(source)

    def read(key: str, box: Box) -> torch.Tensor:
        return values[key].view(before[key].shape)[slices(box)]

    return {
        key: materialise(
            plan.map(key, kind),
            full(tensor.shape),
            read,
            plan.seed,
            torch.empty(tensor.shape, dtype=torch.float64),
        ).view(tensor.checkpoint_shape)
        for key, tensor in plan.tensors.items()
    }


TOKENS = torch.randint(0, 40, (3, 9), generator=torch.Generator().manual_seed(5))


def loss_and_gradients(model: ModelConfig, weights: Weights) -> tuple[torch.Tensor, Weights]:
    """Logits' log-softmax losses of some text, and gradients of their sum."""
    leaves = {key: value.clone().requires_grad_() for key, value in weights.items()}
    losses = reference.losses(model, leaves, TOKENS[:, :8], TOKENS[:, 1:])
    losses.sum().backward()
    zero = torch.zeros(())
    return losses.detach(), {
        key: zero if leaf.grad is None else leaf.grad for key, leaf in leaves.items()
    }


@dataclass
class Case:
    grow: dict[str, Any]
    model: dict[str, Any]
    carries: bool = True
    """Whether moments follow exactly."""


EPS = GPT2.layernorm_epsilon
PRESERVING: dict[str, Case] = {
    "ffn fpi": Case({"ffn": "fpi"}, {"ffn_hidden_size": 20}),
    "ffn tiled": Case({"ffn": "hypercloning"}, {"ffn_hidden_size": 48}),
    "ffn lemon": Case({"ffn": "lemon"}, {"ffn_hidden_size": 31}),
    "ffn zero": Case({"ffn": "zero"}, {"ffn_hidden_size": 17}),
    "groups fpi": Case({"heads": "fpi"}, {"groups": 5}),
    "groups hypercloning": Case({"heads": "hypercloning"}, {"groups": 2.0}),
    "groups lemon": Case({"heads": "lemon"}, {"groups": 9}),
    "groups zero": Case({"heads": "zero"}, {"groups": 6}),
    "queries fpi": Case({"heads": "fpi"}, {"per_group": 5}),
    "queries zero": Case({"heads": "zero"}, {"per_group": 3}),
    "groups and queries": Case(
        {"heads": {"operator": "fpi", "map": "cyclic"}}, {"groups": 6, "per_group": 4}
    ),
    "head size": Case({"heads": "head_size"}, {"kv_channels": 8}),
    "width hypercloning": Case({"width": "hypercloning"}, {"hidden_size": 24}),
    "width fpi": Case({"width": {"operator": "fpi", "map": "cyclic"}}, {"hidden_size": 16}),
    "width block-diagonal": Case(
        {"width": "block_diagonal"}, {"hidden_size": 16, "groups": 2.0, "ffn_hidden_size": 24}
    ),
    "hypercloning": Case(
        {"recipe": "hypercloning"}, {"hidden_size": 16, "groups": 2.0, "ffn_hidden_size": 36}
    ),
    "staged": Case(
        {"recipe": "staged"},
        {"num_layers": 4, "hidden_size": 16, "groups": 2.0, "ffn_hidden_size": 24},
    ),
    "everything": Case(
        {"depth": "copying_zero", "width": "hypercloning", "heads": "zero", "ffn": "fpi"},
        {"num_layers": 5, "hidden_size": 16, "groups": 7, "ffn_hidden_size": 30},
    ),
    # Along the hidden size, uneven shares and means go through a norm: moments follow roughly.
    "width lemon": Case(
        {"width": "lemon"},
        {"hidden_size": 21, "layernorm_epsilon": EPS * 16 / 21},
        carries=False,
    ),
    "lemon": Case(
        {"recipe": "lemon"},
        {
            "num_layers": 3,
            "hidden_size": 13,
            "groups": 5,
            "ffn_hidden_size": 20,
            "layernorm_epsilon": EPS * 8 / 13,
        },
        carries=False,
    ),
    "depth zero": Case({"depth": "zero"}, {"num_layers": 5}),
    "depth copying_zero": Case({"depth": "copying_zero"}, {"num_layers": 5}),
    "depth identity": Case({"depth": "identity"}, {"num_layers": 4}),
    "llama_pro": Case({"recipe": "llama_pro"}, {"num_layers": 3}),
}


def grown_model(model: ModelConfig, changes: dict[str, Any]) -> ModelConfig:
    """``groups`` (a factor if a float) and ``per_group`` are key/value groups and their queries."""
    changes = dict(changes)
    groups = changes.pop("groups", model.query_groups)
    if isinstance(groups, float):
        groups = int(groups * model.query_groups)
    per_group = changes.pop("per_group", model.num_attention_heads // model.query_groups)
    heads = {"num_query_groups": groups, "num_attention_heads": groups * per_group}
    return replace(model, **heads, **changes)


@pytest.mark.parametrize("name", PRESERVING)
@pytest.mark.parametrize("kind", MODELS)
def test_function_and_gradients(name: str, kind: str) -> None:
    """Losses to 1e-12; each tensor's gradient is what ``carry`` makes of the source's."""
    case, source = PRESERVING[name], MODELS[kind]
    target = grown_model(source, case.model)
    plan = growth(source, target, GrowSection(**case.grow), target_depth=9, seed=3)
    assert plan.caveats == ()
    weights = weights_of(source)
    losses, gradients = loss_and_gradients(source, weights)
    grown_losses, grown_gradients = loss_and_gradients(
        target, applied(plan, source, weights, MAIN_PARAM)
    )
    assert (grown_losses - losses).abs().max() < 1e-12 * losses.abs().max()
    if not case.carries:
        return
    carried = applied(plan, source, gradients, "exp_avg")
    squares = applied(plan, source, {k: g.square() for k, g in gradients.items()}, "exp_avg_sq")
    for key, gradient in grown_gradients.items():
        where = carried[key] != 0
        assert where.any() == (gradients[key].abs().max() > 0 if key in gradients else False)
        difference = (gradient - carried[key])[where]
        assert difference.abs().max() < 1e-11 * gradient.abs().max(), key
        assert torch.allclose(squares[key], carried[key].square(), rtol=1e-12, atol=0), key
