"""Growth of whole models in fp64, without ranks: the algebra alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from megatron_grow.config.model import ModelConfig
from megatron_grow.growth.plan import Plan
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.boxes import Box, full, slices
from megatron_grow.state.materialise import materialise
from megatron_grow.state.questions import Answers, Question
from tests.model import bert_reference, reference

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
PRE_NORM = replace(GPT2, architecture="bert", options={"norm_position": "pre"})
# A norm of what is normalised changes it by its epsilon: one that shows in fp64 is no use here.
POST_NORM = replace(GPT2, architecture="bert", layernorm_epsilon=1e-18)
MODELS = {
    "GPT-2": GPT2,
    "untied": UNTIED,
    "LLaMA": LLAMA,
    "tied LLaMA": TIED_LLAMA,
    # By import path, from examples/extend.
    "post-norms": replace(TIED_LLAMA, architecture="extend.post_norms:PostNorms"),
    "second MLP": replace(GPT2, architecture="extend.second_mlp:SecondMLP"),
    "BERT, pre-norm": PRE_NORM,
    "BERT, post-norm": POST_NORM,
}

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


def answers(values: Weights, questions: Iterable[Question]) -> Answers:
    """From whole tensors, by torch's own mean."""
    found = {}
    for asked in questions:
        tensor = asked.tensor
        others = [i for i, axis in enumerate(tensor.axes) if axis.name not in asked.along]
        squares = values[tensor.key].view(tensor.shape).double().square()
        found[asked] = squares.mean(others).sqrt()
    return found


def applied(
    plan: Plan,
    source: ModelConfig,
    values: Weights,
    kind: str,
    dtype: torch.dtype = torch.float64,
) -> Weights:
    """The plan, applied to whole tensors."""
    before = logical_tensors(source)
    plan = plan.answered(partial(answers, values))

    def read(key: str, _: str, box: Box) -> torch.Tensor:
        return values[key].view(before[key].shape)[slices(box)]

    return {
        key: materialise(
            plan.map(key, kind),
            kind,
            full(tensor.shape),
            read,
            plan.seed,
            torch.empty(tensor.shape, dtype=dtype),
        ).view(tensor.checkpoint_shape)
        for key, tensor in plan.tensors.items()
    }


TOKENS = torch.randint(0, 40, (3, 9), generator=torch.Generator().manual_seed(5))
TEXT = bert_reference.Text(
    TOKENS[:, :8],
    types=(torch.arange(8) >= 4).long().expand(3, -1),
    padding=torch.arange(8) >= torch.tensor([[8], [7], [5]]),
)


def loss_and_gradients(model: ModelConfig, weights: Weights) -> tuple[torch.Tensor, Weights]:
    """What a model computes of some text, and gradients of the sum of its losses.

    Of a GPT its losses, of a BERT both of its logits.
    """
    leaves = {key: value.clone().requires_grad_() for key, value in weights.items()}
    if model.architecture == "bert":
        said = bert_reference.logits(model, leaves, TEXT)
        values = torch.cat([part.flatten() for part in said if part is not None])
        loss = functional.cross_entropy(said.tokens.flatten(0, 1), TOKENS[:, 1:].flatten())
        if said.sentence is not None:
            loss = loss + functional.cross_entropy(said.sentence, torch.tensor([0, 1, 1]))
    else:
        values = reference.losses(model, leaves, TOKENS[:, :8], TOKENS[:, 1:])
        loss = values.sum()
    loss.backward()
    zero = torch.zeros(())
    return values.detach(), {
        key: zero if leaf.grad is None else leaf.grad for key, leaf in leaves.items()
    }


@dataclass
class Case:
    grow: dict[str, Any]
    model: dict[str, Any]
    carries: bool = True
    """Whether moments follow exactly."""


def grown_model(model: ModelConfig, changes: dict[str, Any]) -> ModelConfig:
    """``groups`` (a factor if a float) and ``per_group`` are key/value groups and their queries."""
    changes = dict(changes)
    groups = changes.pop("groups", model.query_groups)
    if isinstance(groups, float):
        groups = int(groups * model.query_groups)
    per_group = changes.pop("per_group", model.num_attention_heads // model.query_groups)
    heads = {"num_query_groups": groups, "num_attention_heads": groups * per_group}
    return replace(model, **heads, **changes)
