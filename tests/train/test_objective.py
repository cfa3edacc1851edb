"""Several losses, of which micro-batches hold unlike amounts, against autograd in plain PyTorch."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection, ScheduleSection
from megatron_grow.config.stages import StageSection
from megatron_grow.model.architectures import logical_tensors
from tests.architectures.two_losses import parts
from tests.distributed import run_ranks
from tests.growth.test_context_parallel import allow_context_parallelism
from tests.model import reference
from tests.state.snapshot import Part, assemble, snapshot
from tests.toy import TIED, begin, layout, loop_over, micro_batches, tokens
from tests.train.command import launch, rows

MODEL = replace(TIED, architecture="tests.architectures.two_losses:TwoLosses")
STEPS, BATCH, LR, CLIP = 4, 8, 0.5, 1.0
LOSSES = ("marked_loss", "odd_loss", "no_loss")


class Found(NamedTuple):
    """What a run did; a mean for each loss and metric, in each step."""

    weights: list[Part]
    means: list[dict[str, float]]
    norms: list[float]
    evaluated: dict[str, float]
    """Over as many batches, at the end."""


def run(parallel: dict[str, Any], micro_batch_size: int) -> RunConfig:
    return RunConfig(
        model=MODEL,
        train=replace(
            RunConfig().train,
            train_iters=STEPS,
            global_batch_size=BATCH,
            micro_batch_size=micro_batch_size,
            seq_length=MODEL.max_position_embeddings,
        ),
        optimizer=OptimizerSection(
            optimizer="sgd", lr=LR, sgd_momentum=0.0, weight_decay=0.0, clip_grad=CLIP
        ),
        schedule=ScheduleSection(lr_decay_style="constant", lr_warmup_fraction=0.0),
        stages=[StageSection(parallel=parallel)],
    )


def trained(world_size: int, parallel: dict[str, Any]) -> dict[int, Found]:
    """On a rank, by the size of micro-batches."""
    if "context_parallel_size" in parallel:
        allow_context_parallelism()
    found = {}
    for size in (1, 2, 4):
        config = run(parallel, size)
        live = begin(config, world_size)
        weights = snapshot(live.pieces())
        steps = [
            (ctx.means(), ctx.grad_norm)
            for ctx in loop_over(live, config).steps(micro_batches(config, 0))
        ]
        evaluated = live.evaluate(micro_batches(config, 0), STEPS)
        assert evaluated is not None
        found[size] = Found(weights, *map(list, zip(*steps, strict=True)), evaluated)
        live.release()
    return found


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels of a global batch."""
    both = tokens(step, MODEL.vocab_size, BATCH, MODEL.max_position_embeddings)
    return both[:, :-1], both[:, 1:]


def sums(weights: reference.Weights, step: int) -> dict[str, tuple[torch.Tensor, int]]:
    """Of a global batch: each loss's and the metric's sum and count."""
    inputs, labels = batch(step)
    losses, each = reference.losses(MODEL, weights, inputs, labels), parts(labels)
    found = {name: (losses[part].sum(), int(part.sum())) for name, part in each.items()}
    marked = each["marked_loss"]
    return {**found, "marked_below_5": ((losses[marked] < 5).double().sum(), int(marked.sum()))}


def means(pairs: dict[str, tuple[torch.Tensor, int]]) -> dict[str, torch.Tensor]:
    found = {name: total / count if count else 0 * total for name, (total, count) in pairs.items()}
    return {"loss": sum((found[name] for name in LOSSES), torch.zeros(())), **found}


def by_autograd(weights: reference.Weights) -> Found:
    """The same steps of gradient descent in fp64."""
    steps = []
    for step in range(STEPS):
        leaves = {key: value.clone().requires_grad_() for key, value in weights.items()}
        found = means(sums(leaves, step))
        found["loss"].backward()
        gradients = {key: leaf.grad for key, leaf in leaves.items() if leaf.grad is not None}
        norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
        scale = LR * min(1.0, CLIP / norm.item())
        weights = {key: value - scale * gradients[key] for key, value in weights.items()}
        steps.append(({name: mean.item() for name, mean in found.items()}, norm.item()))
    whole = [sums(weights, step) for step in range(STEPS)]
    total = {
        name: (
            sum((each[name][0] for each in whole), torch.zeros(())),
            sum(each[name][1] for each in whole),
        )
        for name in whole[0]
    }
    evaluated = {name: mean.item() for name, mean in means(total).items()}
    return Found([], *map(list, zip(*steps, strict=True)), evaluated)


LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one rank": (1, layout()),
    "DP2": (2, layout(overlap_grad_reduce=True)),
    "PP2": (2, layout(pp=2)),
    "VPP2": (2, layout(pp=2, pipeline_model_parallel_layout="E|t|t|L")),
    "TP2 DP2": (4, layout(tp=2)),
    "CP2 DP2": (4, layout(context_parallel_size=2)),
}


@pytest.fixture(scope="module")
def alone() -> dict[int, Found]:
    return run_ranks(1, trained, *LAYOUTS["one rank"])[0]


@pytest.fixture(scope="module")
def truth(alone: dict[int, Found]) -> Found:
    tensors = logical_tensors(MODEL)
    state = assemble(tensors, [alone[1].weights])
    return by_autograd(
        {
            key: torch.from_numpy(values).double().reshape(tensors[key].checkpoint_shape)
            for (key, kind), values in state.items()
            if kind == "main_param"
        }
    )


@pytest.mark.parametrize("name", LAYOUTS)
def test_neither_layout_nor_micro_batch_changes_a_step(
    name: str, alone: dict[int, Found], truth: Found
) -> None:
    ranks = [alone] if name == "one rank" else run_ranks(LAYOUTS[name][0], trained, *LAYOUTS[name])
    for found in (found for rank in ranks for found in rank.values()):
        for mine, exact in zip(found.means, truth.means, strict=True):
            assert mine == pytest.approx(exact, rel=2e-6)
            assert list(mine) == ["loss", *LOSSES, "marked_below_5"]
        assert found.norms == pytest.approx(truth.norms, rel=1e-5)
        assert found.evaluated == pytest.approx(truth.evaluated, rel=2e-6)


def test_the_amounts_are_unlike(truth: Found) -> None:
    """What is tested above could go wrong."""
    counts = [parts(batch(step)[1])["marked_loss"].sum(1).tolist() for step in range(STEPS)]
    assert all(0 in each and len(set(each)) > 2 for each in counts), counts
    assert len({sum(each) for each in counts}) == STEPS
    assert min(truth.norms) > CLIP
    assert all(step["no_loss"] == 0 != step["marked_below_5"] for step in truth.means[1:])


NAMES = (*LOSSES, "marked_below_5")


def ruled(loss_name: str) -> list[str]:
    """The first stage ends when that loss is below more than it ever was: at the first question."""
    until = {"rule": "loss_below", "loss": 99.0, "every": 4, "at_most": 10, "loss_name": loss_name}
    grows = {"grow": {"depth": "random"}, "parallel": {"pipeline_model_parallel_size": 2}}
    stages = [{"until": until, "model": {"num_layers": 0}}, grows]
    return ["--model.architecture", MODEL.architecture, "--stages", json.dumps(stages)]


def test_rows_have_every_number_and_a_rule_sees_one(workplace: Path) -> None:
    code, output, errors = launch(workplace, "two", *ruled("odd_loss"), "--train.train_iters=12")
    assert code == 0, errors
    found = rows(workplace, "two")
    training = {row["step"]: row for row in found if "lr" in row}
    assert sorted(training) == list(range(1, 13))
    for prefix, each in (
        ("", training.values()),
        ("val_", [row for row in found if "val_loss" in row]),
    ):
        for row in each:
            assert row[f"{prefix}loss"] == pytest.approx(sum(row[prefix + name] for name in LOSSES))
            assert 0 < row[f"{prefix}odd_loss"] != row[f"{prefix}marked_loss"]
            assert 0 <= row[f"{prefix}marked_below_5"] <= 1
    assert f"(marked {training[3]['marked_loss']:.4f}, odd {training[3]['odd_loss']:.4f}" in output

    (end,) = (row for row in found if row.get("event") == "stage_end")
    seen = sum(training[step]["odd_loss"] for step in (1, 2, 3, 4)) / 4
    assert end["last_step"] == 4
    assert float(re.search(r"loss (\S+) is", end["reason"])[1]) == pytest.approx(seen, rel=1e-5)

    (growth,) = (row for row in found if row.get("event") == "growth")
    (before,) = (row for row in found if "val_loss" in row and row["step"] == 4)
    for name in ("loss", *NAMES):
        assert growth[f"val_{name}_before"] == before[f"val_{name}"]
    for when in ("before", "after"):
        together = sum(growth[f"val_{name}_{when}"] for name in LOSSES)
        assert growth[f"val_loss_{when}"] == pytest.approx(together)


def test_a_rule_cannot_see_what_is_not_trained_on(workplace: Path) -> None:
    for name in ("marked_below_5", "masked_lm_loss"):
        code, _, errors = launch(workplace, "none", *ruled(name))
        assert code == 2 and errors == (
            f"error: stages[0].until.loss_name={name} must be one of loss, marked_loss, odd_loss, "
            "no_loss\n"
        )
