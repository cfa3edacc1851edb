"""What ``build_optimizer`` makes of each rule, on a real model on one rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch

from megatron_grow.config.sections import OptimizerSection
from megatron_grow.optim.state import inner_optimizers, set_step
from tests.distributed import run_ranks
from tests.optim.formulas import MuonFormula, NSGDFormula
from tests.optim.toy import Toy, build, gpt

RULES = ["adam", "sgd", "muon", "muon_nsgd"]


def _named(toy: Toy) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for name, param in toy.chunk.named_parameters():
        yield name.removeprefix("module."), param


def _clones(toy: Toy) -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(param.detach().clone()) for name, param in _named(toy)}


def _optimizer_of(toy: Toy) -> dict[str, str]:
    """Class name of the inner optimizer of each parameter."""
    names = {id(param): name for name, param in _named(toy)}
    return {
        names[id(param)]: type(inner).__name__
        for inner in inner_optimizers(toy.optimizer)
        for group in inner.param_groups
        for param in group["params"]
    }


def _compare_adam_with_torch() -> None:
    """Several steps, clipped; torch's own AdamW and clipping on copies, fed the same gradients."""
    section = OptimizerSection(lr=1e-2, weight_decay=0.1, clip_grad=0.1)
    toy = build(section)
    copies = _clones(toy)
    decayed = [p for p in copies.values() if p.dim() > 1]
    others = [p for p in copies.values() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for number in range(3):
        _, norm = toy.step(number)
        for name, param in _named(toy):  # the step has clipped the buffers in place
            copies[name].grad = param.main_grad.clone()
        clipped = torch.nn.utils.clip_grad_norm_(copies.values(), math.inf)
        assert norm > 0.1 and clipped == pytest.approx(0.1, rel=1e-4)
        reference.step()
        for name, param in _named(toy):
            torch.testing.assert_close(param, copies[name], rtol=0, atol=1e-6, msg=name)


def test_adam_is_torch_adamw_with_clipping_and_decay_of_matrices() -> None:
    run_ranks(1, _compare_adam_with_torch)


def _compare_with_formulas(rule: str) -> None:
    """Two steps of the chained rules; the fused projections taken apart by their axes."""
    section = OptimizerSection(optimizer=rule, lr=0.02, weight_decay=0.1, clip_grad=0.0)
    toy = build(section)
    before = {name: param.detach().clone() for name, param in _named(toy)}
    formulas: dict[str, list[Callable]] = {}
    for number in range(2):
        _, norm = toy.step(number)
        grads = {name: param.main_grad for name, param in _named(toy)}
        total = math.sqrt(sum(float(grad.double().square().sum()) for grad in grads.values()))
        assert norm == pytest.approx(total, rel=1e-5)  # though nothing is clipped
        for name, param in _named(toy):
            if param.dim() == 2 and (rule == "muon_nsgd" or "decoder.layers." in name):
                make: Callable = lambda: MuonFormula(0.02, 0.1)  # noqa: E731
            elif rule == "muon_nsgd":
                make = lambda: NSGDFormula(0.02, 0.0)  # noqa: E731
            else:
                continue
            rules = formulas.setdefault(name, [make() for _ in _matrices(name, param)])
            after = zip(
                rules, _matrices(name, before[name]), _matrices(name, grads[name]), strict=True
            )
            expected = [formula(weight, grad) for formula, weight, grad in after]
            for matrix, wanted in zip(_matrices(name, param), expected, strict=True):
                torch.testing.assert_close(matrix.double(), wanted, rtol=0, atol=2e-5, msg=name)
            before[name] = param.detach().clone()
    assert len(formulas) == (len(grads) if rule == "muon_nsgd" else 8)


def _matrices(name: str, tensor: torch.Tensor) -> list[torch.Tensor]:
    """The toy has 120 tokens, 2 groups of 2 query heads, of size 8, and a gate of 48."""
    if name.endswith("word_embeddings.weight"):
        return [tensor.detach()[:120]]
    if name.endswith("linear_qkv.weight"):
        heads = tensor.detach().view(2, 4, 8, 32)
        parts = (heads[:, :2], heads[:, 2], heads[:, 3])
        return [part.reshape(-1, 32) for part in parts]
    if name.endswith("linear_fc1.weight"):
        return [tensor.detach()[:48], tensor.detach()[48:]]
    return [tensor.detach()]


@pytest.mark.parametrize("rule", ["muon", "muon_nsgd"])
def test_muon_of_a_real_model_follows_the_formulas(rule: str) -> None:
    run_ranks(1, _compare_with_formulas, rule)


def _check_division() -> None:
    embeddings = {
        "embedding.word_embeddings.weight",
        "embedding.position_embeddings.weight",
        "output_layer.weight",
    }
    cases = {
        ("muon", True): ("AdamW", "AdamW"),
        ("muon_nsgd", True): ("Muon", "NSGD"),
        ("muon_nsgd", False): ("NSGD", "NSGD"),
    }
    for (rule, muon_embeddings), (of_embeddings, of_vectors) in cases.items():
        section = OptimizerSection(
            optimizer=rule, lr=1e-3, muon_lr=0.02, muon_embeddings=muon_embeddings
        )
        toy = build(section, model=gpt(share_embeddings_and_output_weights=False))
        for name, optimizer in _optimizer_of(toy).items():
            param = dict(_named(toy))[name]
            if name in embeddings:
                assert optimizer == of_embeddings, name
            else:
                assert optimizer == (of_vectors if param.dim() == 1 else "Muon"), name
        peaks = {
            type(inner).__name__: inner.param_groups[0]["max_lr"]
            for inner in inner_optimizers(toy.optimizer)
        }
        assert peaks["Muon"] == (0.02 if rule == "muon" else 1e-3)


def test_who_updates_what() -> None:
    run_ranks(1, _check_division)


def _check_state(precision: str) -> None:
    for rule in RULES:
        for layers in (0, 2):
            toy = build(OptimizerSection(optimizer=rule), None, gpt(num_layers=layers), precision)
            states = [
                inner.state[param]
                for inner in inner_optimizers(toy.optimizer)
                for group in inner.param_groups
                for param in group["params"]
            ]
            assert len(states) == len(list(toy.chunk.parameters()))
            for state in states:
                assert state.keys() in ({"exp_avg", "exp_avg_sq", "step"}, {"momentum_buffer"})
                for tensor in state.values():
                    assert tensor.dtype is torch.float32 and not tensor.any()
            counts = [state["step"] for state in states if "step" in state]
            assert bool(counts) == (rule in ("adam", "muon"))
            assert len({count.data_ptr() for count in counts}) == len(counts)

            set_step(toy.optimizer, 7)
            loss, _ = toy.step(0)
            assert math.isfinite(loss)
            done = {float(state["step"]) for state in states if "step" in state}
            assert done == ({8.0} if counts else set())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_state_is_there_before_the_first_step(precision: str) -> None:
    run_ranks(1, _check_state, precision)


def _compare_precisions(rule: str) -> None:
    section = OptimizerSection(optimizer=rule, lr=1e-2, muon_lr=2e-2)
    fallen = []
    for precision in ("fp32", "bf16"):
        toy = build(section, precision=precision)
        losses = [toy.step(0)[0] for _ in range(8)]
        fallen.append(losses[0] - losses[-1])
    assert fallen[0] > 0.01
    assert fallen[1] == pytest.approx(fallen[0], rel=0.1, abs=0.02)


@pytest.mark.parametrize("rule", RULES)
def test_bf16_follows_fp32(rule: str) -> None:
    """The same batch again and again: the loss falls, in bf16 as in fp32."""
    run_ranks(1, _compare_precisions, rule)
