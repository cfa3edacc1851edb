"""What a rule keeps of tensors is what it declares, or it is told so at its first step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from megatron_grow.checkpoint.megatron_lm.optimizer import optimizer_groups
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.convert.synthetic import SyntheticReader
from megatron_grow.cost.memory import estimate_memory
from megatron_grow.inputs.errors import UserError
from megatron_grow.optim.adam import Adam
from megatron_grow.optim.base import Optimizer
from megatron_grow.optim.roles import role
from megatron_grow.state.tensors import LogicalTensor
from tests.convert.toy import GPT
from tests.distributed import run_ranks
from tests.optim.toy import build, gpt, train

MODULE = "tests.optim.test_state"


@dataclass(frozen=True)
class Momentum(Optimizer):
    """A rule that keeps its state as a first draft would."""

    states: ClassVar = {"velocity": 1}

    mistake: str = ""

    def build(self, groups: list[dict[str, Any]], dtype: torch.dtype) -> torch.optim.Optimizer:
        return MomentumRule(groups, {"lr": self.lr, "mistake": self.mistake})


class MomentumRule(torch.optim.Optimizer):
    """A mistake is one of a factored moment, a count, and a moment that is bound anew."""

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                if group["mistake"] == "row" and param.dim() == 2:
                    state.setdefault("row", param.new_zeros(param.size(0))).add_(param.grad.mean(1))
                if group["mistake"] == "step":
                    state["step"] = state.get("step", 0) + 1
                if group["mistake"] == "velocity":
                    state["velocity"] = 0.9 * state["velocity"] + param.grad
                else:
                    state["velocity"].mul_(0.9).add_(param.grad)
                param.add_(state["velocity"], alpha=-group["lr"])


@dataclass(frozen=True)
class Undeclared(Optimizer):
    """torch's SGD, without a word on its momentum."""

    def build(self, groups: list[dict[str, Any]], dtype: torch.dtype) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, self.lr, momentum=0.9)


def _told(name: str, **options: str) -> str:
    toy = build(OptimizerSection(f"{MODULE}:{name}", options=options))
    try:
        toy.step(0)
    except UserError as error:
        return str(error)
    return ""


def _all_told() -> list[str]:
    momenta = [_told("Momentum", mistake=mistake) for mistake in ("", "row", "step", "velocity")]
    return [*momenta, _told("Undeclared")]


def test_state_that_would_be_lost_is_told_at_the_first_step() -> None:
    [[fine, *told, undeclared]] = run_ranks(1, _all_told)
    assert fine == ""
    assert f"{MODULE}:Undeclared: its step made momentum_buffer of a tensor" in undeclared
    assert "(nothing; each" in undeclared
    for name, line in zip(("row", "step", "velocity"), told, strict=True):
        assert line.startswith(f"{MODULE}:Momentum: its step made {name} of a tensor"), line
        assert "\n" not in line and "(velocity; each of the tensor's shape)" in line


@dataclass(frozen=True)
class Blend(Adam):
    """Elementwise rules, of which embeddings have another."""

    def rule(self, tensor: LogicalTensor) -> Optimizer:
        """Itself for what is no embedding."""
        slow = Adam(self.lr / 2, self.adam_beta1, self.adam_beta2, self.adam_eps)
        return slow if role(tensor) == "embedding" else self


def test_elementwise_rules_side_by_side_are_not_sharded() -> None:
    """megatron-core's distributed optimizer takes all of a gradient buffer or none."""
    section = OptimizerSection(f"{MODULE}:Blend", lr=1e-3, adam_eps=1e-3)
    [(alone, _)] = run_ranks(1, train, section, ParallelConfig())
    ranks = run_ranks(2, train, section, ParallelConfig())
    for steps, _ in ranks:
        assert steps == [pytest.approx(step, rel=1e-4) for step in alone]
    blend = Blend(1e-3, 0.9, 0.95, 1e-8)
    known = {
        optimizer: estimate_memory(
            gpt(), ParallelConfig(), 2, precision="fp32", optimizer=optimizer
        ).moments
        for optimizer in (blend, Adam(1e-3, 0.9, 0.95, 1e-8))
    }
    assert [*known.values()] == [known[blend], pytest.approx(known[blend] / 2, abs=8)]


def test_megatron_lm_is_offered_adam_alone() -> None:
    """Not what is Adam for some tensors, though a part of it has Adam's groups."""
    groups = optimizer_groups(SyntheticReader(GPT, optimizer="adam").record)
    assert [group["wd_mult"] for group in groups] == [1.0, 0.0]
    assert not optimizer_groups(SyntheticReader(GPT, optimizer=f"{MODULE}:Blend").record)
