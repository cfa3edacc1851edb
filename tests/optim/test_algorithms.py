"""Muon and NSGD against their formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from megatron_grow.optim.algorithms.muon import SCALES, Muon
from megatron_grow.optim.algorithms.newton_schulz import newton_schulz
from megatron_grow.optim.algorithms.nsgd import NSGD
from tests.optim.formulas import MuonFormula, NSGDFormula


def _run(
    optimizer: torch.optim.Optimizer, formulas: list[Callable], params: list[torch.nn.Parameter]
) -> None:
    """A few steps on random gradients; compares with the formulas after each."""
    expected = [param.detach().double() for param in params]
    for _ in range(4):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
        for i, (param, formula) in enumerate(zip(params, formulas, strict=True)):
            expected[i] = formula(expected[i], param.grad)
            torch.testing.assert_close(param.double(), expected[i], rtol=0, atol=1e-4)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_muon_is_keller_jordans() -> None:
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in [(8, 32), (32, 8), (8, 32)]]
    settings = {"lr": 0.1, "weight_decay": 0.1}
    _run(Muon(params, **settings), [MuonFormula(**settings) for _ in params], params)


def test_nsgd_moves_every_tensor_by_the_learning_rate() -> None:
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in [(7,), (3, 5), ()]]
    settings = {"lr": 0.1, "weight_decay": 0.1}
    _run(NSGD(params, **settings), [NSGDFormula(**settings) for _ in params], params)


def test_nsgd_leaves_a_tensor_without_gradient_in_place() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    param.grad = torch.zeros(3)
    NSGD([param], lr=0.1).step()
    assert torch.equal(param, torch.ones(3))


def test_fused_projection_is_orthogonalised_apart() -> None:
    """Rows q q q k v of each of two groups: as Q (12, 16), K (4, 16) and V (4, 16) on their own."""
    fused = torch.nn.Parameter(torch.zeros(2 * 10, 16))
    fused.row_pattern = (6, 2, 2)  # type: ignore[attr-defined]
    fused.grad = torch.randn(20, 16)
    Muon([fused], lr=1.0, momentum=0.0).step()
    for rows in ([0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15], [6, 7, 16, 17], [8, 9, 18, 19]):
        apart = newton_schulz(fused.grad[rows].unsqueeze(0))[0]
        torch.testing.assert_close(fused[rows], -apart, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "tall", "wide"),
    [("shape_scaling", 2.0, 1.0), ("spectral", 55.4, 55.4), ("unit_rms_norm", 2.0, 0.5)],
)
def test_published_scale_factors(mode: str, tall: float, wide: float) -> None:
    """Of an update of 3072 x 768 and of 768 x 3072 (out x in)."""
    assert SCALES[mode](3072, 768) == pytest.approx(tall, abs=0.05)
    assert SCALES[mode](768, 3072) == pytest.approx(wide, abs=0.05)


@pytest.mark.parametrize("mode", SCALES)
def test_scale_multiplies_the_update(mode: str) -> None:
    param = torch.nn.Parameter(torch.zeros(8, 32))
    param.grad = torch.randn(8, 32)
    Muon([param], lr=1.0, scale_mode=mode).step()
    plain = newton_schulz(param.grad.unsqueeze(0))[0]
    torch.testing.assert_close(-param, SCALES[mode](8, 32) * plain, rtol=1e-4, atol=1e-4)


def test_without_nesterov_the_buffer_is_orthogonalised() -> None:
    param = torch.nn.Parameter(torch.zeros(4, 16))
    optimizer = Muon([param], lr=1.0, momentum=0.5, nesterov=False)
    first, second = torch.randn(4, 16), torch.randn(4, 16)
    param.grad = first
    optimizer.step()
    after_first = param.detach().clone()
    param.grad = second
    optimizer.step()
    expected = newton_schulz((0.25 * first + 0.5 * second).unsqueeze(0))[0]
    torch.testing.assert_close(after_first - param, expected, rtol=0, atol=1e-5)
    assert math.isclose(
        optimizer.state[param]["momentum_buffer"].norm(),
        (0.25 * first + 0.5 * second).norm(),
        rel_tol=1e-6,
    )
