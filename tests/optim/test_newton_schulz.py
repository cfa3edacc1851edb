"""The iteration acts on singular values alone, as a known polynomial."""

from __future__ import annotations

import pytest
import torch

from megatron_grow.optim.algorithms.newton_schulz import newton_schulz
from tests.optim.formulas import orthogonalised


def _gaussian(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 48, 12), (2, 12, 48), (1, 1, 7)])
def test_equals_polynomial_of_singular_values(shape: tuple[int, ...]) -> None:
    matrices = _gaussian(*shape)
    expected = torch.stack([orthogonalised(matrix) for matrix in matrices])
    torch.testing.assert_close(newton_schulz(matrices), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(768, 192), (192, 768), (256, 256)])
def test_published_range_of_singular_values(shape: tuple[int, int]) -> None:
    """Five steps on Gaussian matrices: at most 1.21; at least 0.65 if the aspect is 4 or more."""
    values = torch.linalg.svdvals(newton_schulz(_gaussian(4, *shape).float()))
    assert values.max() <= 1.21
    if shape[0] != shape[1]:
        assert values.min() >= 0.65


def test_stacked_copies_share_the_update() -> None:
    """NS5 of [G; G] has identical halves, NS5(G) / sqrt(2)."""
    matrix = _gaussian(1, 16, 24)
    halves = newton_schulz(torch.cat([matrix, matrix], dim=1)).chunk(2, dim=1)
    torch.testing.assert_close(halves[0], halves[1], rtol=0, atol=1e-14)
    torch.testing.assert_close(halves[0], newton_schulz(matrix) / 2**0.5, rtol=0, atol=1e-6)


def test_zero_stays_zero_and_bf16_is_close() -> None:
    assert newton_schulz(torch.zeros(1, 4, 8)).abs().max() == 0.0
    matrices = _gaussian(1, 32, 128)
    rounded = newton_schulz(matrices.bfloat16())
    assert rounded.dtype is torch.bfloat16
    error = (rounded.double() - newton_schulz(matrices)).norm() / newton_schulz(matrices).norm()
    assert error < 0.05
