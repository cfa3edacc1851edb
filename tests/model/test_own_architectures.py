"""Architectures of one's own, by import path: those of examples/extend, and their options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from megatron_grow.checkpoint.huggingface.config import choose_family, export_note
from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import StageSection, changed_model
from megatron_grow.cost.flops import model_flops_per_token
from megatron_grow.cost.parameters import count_parameters
from megatron_grow.growth.plan import growth
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import Count
from megatron_grow.model.architecture import Loss
from megatron_grow.model.architectures import architecture_of
from megatron_grow.model.gpt.architecture import GPT
from megatron_grow.model.huggingface import Family
from megatron_grow.model.tensors import hidden, norm_tensors
from megatron_grow.state.tensors import LogicalTensor
from tests.checkpoint.live import resume, train_to, write
from tests.distributed import run_ranks
from tests.toy import (
    MODEL,
    Trace,
    begin,
    grow,
    layout,
    micro_batches,
    run_config,
    tokens,
    train_stage,
)

POST_NORMS = replace(MODEL, normalization="RMSNorm", architecture="extend.post_norms:PostNorms")
SECOND_MLP = replace(MODEL, activation="swiglu", architecture="extend.second_mlp:SecondMLP")
MODELS = {"post-norms": POST_NORMS, "second MLP": SECOND_MLP}
SMALL = {"num_layers": 2, "hidden_size": 16, "kv_channels": 8}
GROWN, SAVED, LAST = 2, 4, 6
"""Steps of the growth, of the checkpoint, and of the end."""


def run(model: ModelConfig, world_size: int) -> RunConfig:
    where = layout(tp=2, pp=2, sequence_parallel=True) if world_size == 4 else layout()
    return run_config(
        StageSection(until=GROWN, model=SMALL, parallel=where),
        StageSection(parallel=where, grow=GrowSection(depth="copying_zero", width="hypercloning")),
        model=replace(model, kv_channels=8),
        train_iters=LAST,
        global_batch_size=4,
    )


def train_and_save(world_size: int, root: Path) -> dict[str, list[float]]:
    """On a rank: the losses of all steps, with a growth and a checkpoint between them."""
    found = {}
    for name, model in MODELS.items():
        config, trace = run(model, world_size), Trace()
        live = begin(config, world_size)
        train_stage(live, config, trace)
        live = grow(live, config, world_size)
        trace.losses += train_to(live, config, GROWN, SAVED)
        write(live, config, root / name, SAVED)
        trace.losses += train_to(live, config, SAVED, LAST)
        live.release()
        found[name] = trace.losses
    return found


def resume_and_train(world_size: int, root: Path) -> dict[str, list[float]]:
    """On a rank: the losses of the steps after the checkpoint."""
    found = {}
    for name, model in MODELS.items():
        config = run(model, world_size)
        live = resume(root / name / f"iter_{SAVED:07d}", config, world_size)
        found[name] = train_to(live, config, SAVED, LAST)
        live.release()
    return found


def test_they_train_grow_and_are_saved_alike_on_any_layout(tmp_path: Path) -> None:
    (alone,) = run_ranks(1, train_and_save, 1, tmp_path / "alone")
    together = run_ranks(4, train_and_save, 4, tmp_path / "together")
    (resumed,) = run_ranks(1, resume_and_train, 1, tmp_path / "together")
    for name, losses in alone.items():
        assert len(losses) == LAST
        # The growth keeps the function: what follows goes on learning from where it was.
        assert losses[GROWN] < losses[0]
        for rank in together:
            assert rank[name] == pytest.approx(losses, rel=2e-5)
        assert resumed[name] == pytest.approx(losses[SAVED:], rel=2e-5)
    assert alone["post-norms"] != alone["second MLP"]


def test_what_they_cost() -> None:
    """Two gains for each layer; the second MLP's two matrices, three where gated, and its norm."""
    plain = replace(POST_NORMS, architecture="gpt")
    assert count_parameters(POST_NORMS) - count_parameters(plain) == 4 * 2 * 32
    assert model_flops_per_token(POST_NORMS, 16) == model_flops_per_token(plain, 16)
    plain, matrices = replace(SECOND_MLP, architecture="gpt"), 4 * 3 * 32 * 64
    biases = 4 * (2 * 64 + 32)
    more = count_parameters(SECOND_MLP) - count_parameters(plain)
    assert more == matrices + biases + 4 * 2 * 32
    flops = model_flops_per_token(SECOND_MLP, 16) - model_flops_per_token(plain, 16)
    assert flops == 6 * matrices


def test_they_are_no_model_of_hugging_face() -> None:
    """They inherit a GPT's families, none of which has a place for what they add."""
    plain = replace(SECOND_MLP, architecture="gpt", num_query_groups=None, activation="gelu")
    assert choose_family(plain, None, {}).model_type == "gpt2"
    with pytest.raises(UserError, match=r"gpt2: model\.architecture=extend\.post_norms:PostNorms;"):
        choose_family(POST_NORMS, None, {})
    assert export_note(SECOND_MLP, SECOND_MLP) == "cannot be exported to Hugging Face"


@dataclass(frozen=True)
class Lossy(GPT):
    """One that says of a family that it can hold it, and forgets a tensor."""

    def tensors(self, model: ModelConfig, target_depth: int | None) -> dict[str, LogicalTensor]:
        (more,) = norm_tensors("more.", hidden(model), replace(model, normalization="RMSNorm"))
        return super().tensors(model, target_depth) | {more.key: more}

    def families(self) -> dict[str, Family]:
        gpt2 = super().families()["gpt2"]
        said = {**gpt2.model, "architecture": f"{__name__}:Lossy"}
        return {"gpt2": replace(gpt2, model=said)}


def test_a_tensor_without_a_place_in_a_family_is_not_lost() -> None:
    model = replace(MODEL, architecture=f"{__name__}:Lossy", num_query_groups=None)
    with pytest.raises(UserError, match=r"\(gpt2: tensor more\.weight\)"):
        choose_family(model, None, {})


SEEN: dict[int, list[int]] = {}


@dataclass(frozen=True)
class EveryChunkReads(GPT):
    """As a BERT's middle pipeline stages, which need the padding; with twice the loss."""

    def reads(self, *, first: bool, last: bool) -> bool:
        return True

    def forward_step(
        self, chunk: torch.nn.Module, batch: Mapping[str, torch.Tensor] | None
    ) -> tuple[Any, Loss]:
        assert batch is not None
        SEEN.setdefault(id(chunk), []).append(int(batch["tokens"].sum()))
        output, loss = super().forward_step(chunk, batch)
        return output, lambda output: {"loss": loss(output)["loss"] * torch.tensor([2.0, 1.0])}


def evaluations(world_size: int, parallel: dict[str, Any]) -> tuple[list[float], list[list[int]]]:
    """On a rank: the losses of a GPT and of the other, and what the chunks of that have seen."""
    losses = []
    for architecture in ("gpt", f"{__name__}:EveryChunkReads"):
        model = replace(MODEL, architecture=architecture)
        config = run_config(StageSection(parallel=parallel), model=model, global_batch_size=4)
        live = begin(config, world_size)
        means = live.evaluate(micro_batches(config, 0), 2)
        assert means is not None
        losses.append(means["loss"])
        live.release()
    return losses, list(SEEN.values())


def test_an_architecture_says_which_chunks_read_and_how_outputs_become_losses() -> None:
    interleaved = layout(pp=2, virtual_pipeline_model_parallel_size=2)
    sums = [
        int(sequence[:-1].sum())
        for step in (0, 1)
        for sequence in tokens(step, MODEL.vocabulary, 4, MODEL.max_position_embeddings)
    ]
    for (plain, doubled), seen in run_ranks(2, evaluations, 2, interleaved):
        assert doubled == pytest.approx(2 * plain, rel=1e-12)
        assert seen == [sums, sums]  # each of two chunks has all micro-batches, in order


@dataclass(frozen=True)
class WithOptions(GPT):
    """One that can be told something."""

    changing: ClassVar[frozenset[str]] = frozenset({"second"})

    first: Count = 1
    second: float = 0.5


def told(**options: object) -> ModelConfig:
    return replace(MODEL, architecture=f"{__name__}:WithOptions", options=options)


def test_options_are_checked_and_have_defaults() -> None:
    made = architecture_of(told(second=2))
    assert (type(made).__name__, made.first, made.second) == ("WithOptions", 1, 2.0)  # type: ignore[attr-defined]
    for options, message in (
        ({"third": 1}, "model.options.third is not an option of .*; known are first, second"),
        ({"first": 0}, "model.options.first=0 must be at least 1"),
        ({"second": "much"}, "model.options.second=much must be float"),
    ):
        with pytest.raises(UserError, match=message):
            architecture_of(told(**options))
    with pytest.raises(UserError, match=r"first is not an option of gpt; known are none"):
        architecture_of(replace(MODEL, options={"first": 1}))


def test_a_stage_names_the_options_that_differ() -> None:
    small = changed_model(told(first=2), {"options": {"second": 1.0}}, "stages[0].model")
    assert small.options == {"first": 2, "second": 1.0}


def test_a_growth_changes_those_options_alone_that_the_architecture_lists() -> None:
    def planned(**options: object) -> str:
        source, target = replace(told(), num_layers=2), told(**options)
        section = GrowSection(depth="random")
        return growth(source, target, section, target_depth=4, seed=1, where="here").summary

    assert planned(second=0.75) == planned() == "2 -> 4 layers by random"
    with pytest.raises(
        UserError, match=r"^here: model\.options\.first=2 differs from the 1 before"
    ):
        planned(first=2)
