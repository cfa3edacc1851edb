"""BERTs on many layouts against transformers': logits, losses, accuracies, gradients, Adam."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection, ScheduleSection
from megatron_grow.config.stages import StageSection
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.kinds import MAIN_PARAM
from tests.bert import bert, micro_batches, samples
from tests.distributed import run_ranks
from tests.model import transformers_bert
from tests.state.snapshot import Part, assemble, snapshot
from tests.toy import begin, layout, loop_over, make_uneven, run_config

STEPS, BATCH, LR, CLIP, BETAS, SEED = 4, 8, 3e-3, 1.0, (0.9, 0.95), 11
POST, PRE = bert(), bert(norm_position="pre")
MODELS: dict[str, tuple[ModelConfig, str]] = {
    "post": (POST, "bert"),
    "pre": (PRE, "megatron-bert"),
    "no sentence head": (bert(sentence_head="none"), "bert without sentences"),
    "roberta": (
        replace(
            bert(sentence_head="none", token_types=0, first_position=2), max_position_embeddings=18
        ),
        "roberta",
    ),
    "untied": (replace(POST, share_embeddings_and_output_weights=False), "bert"),
    "post, no layers": (replace(POST, num_layers=0), "bert"),
    "pre, no layers": (replace(PRE, num_layers=0), "megatron-bert"),
    "257 tokens": (replace(POST, vocab_size=257), "bert"),
    "257 tokens, untied": (
        replace(PRE, vocab_size=257, share_embeddings_and_output_weights=False),
        "megatron-bert",
    ),
}
SP2 = layout(tp=2, sequence_parallel=True)
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
APART = {"pipeline_model_parallel_layout": "E|L"}
"""Embeddings on a stage and heads on another, without a layer."""
ON_FOUR_RANKS: dict[str, tuple[str, dict[str, Any]]] = {
    "TP2 SP, overlapped": ("post", {**SP2, **OVERLAP}),
    "PP2": ("post", layout(pp=2, use_distributed_optimizer=False)),
    "PP2 VPP2": ("post", layout(pp=2, virtual_pipeline_model_parallel_size=2)),
    "TP2 SP PP2": ("post", {**SP2, "pipeline_model_parallel_size": 2}),
    "DP4": ("post", layout(**OVERLAP)),
    "pre, TP2 SP PP2": ("pre", {**SP2, "pipeline_model_parallel_size": 2}),
    "pre, PP2 VPP2": ("pre", layout(pp=2, virtual_pipeline_model_parallel_size=2)),
    "roberta, TP2 SP PP2": ("roberta", {**SP2, "pipeline_model_parallel_size": 2}),
    "post, no layers, TP2 SP": ("post, no layers", SP2),
    "post, no layers, PP2": ("post, no layers", layout(pp=2, **APART)),
    "pre, no layers, TP2 PP2": ("pre, no layers", layout(tp=2, pp=2, **APART)),
    "257 tokens, TP2": ("257 tokens", layout(tp=2)),
    "257 tokens, TP2 SP PP2": ("257 tokens", {**SP2, "pipeline_model_parallel_size": 2}),
    "257 tokens, untied, TP4": ("257 tokens, untied", layout(tp=4)),
}


class Found(NamedTuple):
    """What a run did on a rank."""

    weights: list[Part]
    means: list[dict[str, float]]
    """Of the evaluation of the first batch, then of each step."""
    norms: list[float]
    first: list[Part]
    """The state after the first step."""
    logits: list[np.ndarray | None]
    """Of all tokens of the first batch and of their sentences, at first, on a single rank."""


def run(model: ModelConfig, parallel: dict[str, Any], **train: Any) -> RunConfig:
    config = run_config(
        StageSection(parallel=parallel),
        model=model,
        optimizer=OptimizerSection(
            lr=LR, weight_decay=0.0, clip_grad=CLIP, adam_beta1=BETAS[0], adam_beta2=BETAS[1]
        ),
        train_iters=STEPS,
        global_batch_size=BATCH,
        **train,
    )
    constant = ScheduleSection(lr_decay_style="constant", lr_warmup_fraction=0.0)
    return replace(config, schedule=constant)


def train(config: RunConfig, world_size: int) -> Found:
    live = begin(config, world_size)
    make_uneven(live)
    weights, found = snapshot(live.pieces()), []
    if world_size == 1:
        batch = samples(0, config.model.vocabulary, BATCH, config.train.seq_length)
        with torch.no_grad():
            logits, _, sentence = live.chunks[0].eval()(
                *(batch[name] for name in ("tokens", "token_types", "padding_mask"))
            )
        found = [logits.transpose(0, 1).numpy(), None if sentence is None else sentence.numpy()]
    evaluated = live.evaluate(micro_batches(config, 0), 1)
    assert evaluated is not None
    loop, means, norms, first = loop_over(live, config), [evaluated], [], []
    for ctx in loop.steps(micro_batches(config, 0)):
        means.append(ctx.means())
        norms.append(ctx.grad_norm)
        first = first or snapshot(live.pieces())
    live.release()
    return Found(weights, means, norms, first, found)


def dropped(config: RunConfig) -> tuple[list[Part], np.ndarray, np.ndarray]:
    """On a rank: weights, and logits of one sample, in training."""
    live = begin(config, 1)
    make_uneven(live)
    weights, batch = snapshot(live.pieces()), samples(0, config.model.vocabulary, 1, 16)
    live.chunks[0].train()
    torch.manual_seed(SEED)
    with torch.no_grad():
        logits, _, sentence = live.chunks[0](
            *(batch[name] for name in ("tokens", "token_types", "padding_mask"))
        )
    live.release()
    return weights, logits.transpose(0, 1).numpy(), sentence.numpy()


def dropped_all(configs: dict[str, RunConfig]) -> dict[str, Any]:
    return {name: dropped(config) for name, config in configs.items()}


def test_dropout_is_where_transformers_has_it() -> None:
    """And draws in the same order: of one sample, both read the same generator alike."""
    models = {name: replace(MODELS[name][0], hidden_dropout=0.3) for name in ("post", "pre")}
    configs = {name: run(model, layout()) for name, model in models.items()}
    (found,) = run_ranks(1, dropped_all, configs)
    for name, (parts, *ours) in found.items():
        weights = weights_in(models[name], parts)
        batch = samples(0, models[name].vocabulary, 1, 16)
        theirs = transformers_bert.outputs(models[name], MODELS[name][1], weights, batch, seed=SEED)
        for mine, truth in zip(ours, theirs, strict=True):
            assert truth is not None
            np.testing.assert_allclose(mine, truth.detach(), rtol=0, atol=2e-5)


def train_all(configs: dict[str, RunConfig], world_size: int) -> dict[str, Found]:
    """On a rank: several runs, one after the other."""
    return {name: train(config, world_size) for name, config in configs.items()}


def weights_in(model: ModelConfig, parts: list[Part]) -> dict[str, torch.Tensor]:
    """Leaves in fp64, of the state of a single rank."""
    return {
        key: torch.from_numpy(values).double().requires_grad_()
        for (key, kind), values in assemble(logical_tensors(model), [parts]).items()
        if kind == MAIN_PARAM
    }


def reference(name: str, weights: dict[str, torch.Tensor]) -> Any:
    """Steps of transformers' own model in fp64 with torch's Adam: means, norm and gradients."""
    model, kind = MODELS[name]
    adam = torch.optim.Adam(weights.values(), LR, BETAS)
    for step in range(STEPS):
        batch = samples(step, model.vocabulary, BATCH, 16)
        logits, sentence = transformers_bert.outputs(model, kind, weights, batch)
        rows = torch.arange(BATCH)[:, None].expand_as(batch["masked_positions"])
        used = batch["masked_weights"].bool()
        predicted = logits[rows[used], batch["masked_positions"][used]]
        labels = batch["masked_labels"][used]
        loss = functional.cross_entropy(predicted, labels)
        means = {
            "loss": loss,
            "masked_lm_loss": loss,
            "masked_lm_accuracy": (predicted.argmax(-1) == labels).double().mean(),
        }
        if sentence is not None:
            right = batch["is_next"]
            means["sentence_loss"] = functional.cross_entropy(sentence, right)
            means["sentence_accuracy"] = (sentence.argmax(-1) == right).double().mean()
            means["loss"] = loss + means["sentence_loss"]
        adam.zero_grad()
        means["loss"].backward()
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), CLIP)
        gradients = {key: value.grad.clone() for key, value in weights.items()}
        yield (
            {each: value.item() for each, value in means.items()},
            float(norm),
            gradients,
            (
                logits.detach(),
                None if sentence is None else sentence.detach(),
            ),
        )
        adam.step()


@pytest.fixture(scope="module")
def alone() -> dict[str, Found]:
    configs = {name: run(model, layout()) for name, (model, _) in MODELS.items()}
    full = {"recompute_granularity": "full", "recompute_num_layers": 2}
    configs["post, recomputed"] = run(POST, layout(), **full)
    for name in ("post", "pre"):
        configs[f"{name}, bf16"] = run(MODELS[name][0], layout(), precision="bf16")
    return run_ranks(1, train_all, configs, 1)[0]


@pytest.fixture(scope="module")
def expected(alone: dict[str, Found]) -> dict[str, list[Any]]:
    """Of each model, what transformers makes of its weights, step by step."""
    found = {}
    for name, (model, _) in MODELS.items():
        found[name] = list(reference(name, weights_in(model, alone[name].weights)))
    return found


def check(name: str, ranks: list[Found], expected: list[Any]) -> None:
    """Losses, accuracies, gradient norms of all steps, and each gradient of the first."""
    model = MODELS[name][0]
    first = assemble(logical_tensors(model), [found.first for found in ranks])
    _, _, gradients, _ = expected[0]
    for key, gradient in gradients.items():
        found = torch.from_numpy(first[key, "exp_avg"]).double() / (1 - BETAS[0])
        error = (found - gradient).norm() / gradient.norm()
        assert error < 1e-5, f"gradient of {key}: relative error {error:.1e}"
    for rank in ranks:
        assert rank.means[0] == pytest.approx(expected[0][0], rel=1e-6)
        for means, norm, (their_means, their_norm, *_) in zip(
            rank.means[1:], rank.norms, expected, strict=True
        ):
            # Adam makes as much of a gradient that is rounding alone as of any other.
            assert means == pytest.approx(their_means, rel=1e-5)
            assert norm == pytest.approx(their_norm, rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_equals_transformers(name: str, alone: Any, expected: Any) -> None:
    check(name, [alone[name]], expected[name])
    for ours, theirs in zip(alone[name].logits, expected[name][0][3], strict=True):
        if theirs is None:
            assert ours is None
        else:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5)


@pytest.fixture(scope="module")
def together() -> list[dict[str, Found]]:
    configs = {
        where: run(MODELS[name][0], parallel) for where, (name, parallel) in ON_FOUR_RANKS.items()
    }
    return run_ranks(4, train_all, configs, 4)


@pytest.mark.parametrize("where", ON_FOUR_RANKS)
def test_layouts(where: str, together: Any, expected: Any) -> None:
    name, _ = ON_FOUR_RANKS[where]
    check(name, [rank[where] for rank in together], expected[name])


def test_recomputed_layers_change_nothing(alone: Any) -> None:
    plain, again = alone["post"], alone["post, recomputed"]
    assert (plain.means, plain.norms) == (again.means, again.norms)


@pytest.mark.parametrize("name", ["post", "pre"])
def test_bf16_is_close(name: str, alone: Any, expected: Any) -> None:
    """A number has 8 bits there; accuracies of 21 tokens jump."""
    found = alone[f"{name}, bf16"]
    for means, (theirs, *_) in zip(found.means[1:], expected[name], strict=True):
        for loss in ("loss", "masked_lm_loss", "sentence_loss"):
            assert means[loss] == pytest.approx(theirs[loss], rel=2e-2)
    assert found.norms == pytest.approx([norm for _, norm, *_ in expected[name]], rel=5e-2)
