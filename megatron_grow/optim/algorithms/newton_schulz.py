"""Newton-Schulz orthogonalisation, the heart of Muon."""

from __future__ import annotations

import torch

# The quintic x -> a x + b x^3 + c x^5 on the singular values: steep at 0 rather than convergent at
# 1, so five steps bring all but the smallest of them into [0.7, 1.2] (Keller Jordan, 2024).
_A, _B, _C = 3.4445, -4.7750, 2.0315
_EPS = 1e-7


def newton_schulz(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Bring the singular values of each matrix near 1 and keep its singular vectors.

    Args:
        matrices: (n, rows, cols), any floating type; the arithmetic is done in it.
        steps: iterations of the quintic.

    Returns:
        (n, rows, cols), the same type. A zero matrix stays zero. Singular values that are tiny
        against the Frobenius norm, as in square random matrices, do not reach 1.

    Source: Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024).
    """
    x_nmk = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + _EPS)
    tall = x_nmk.size(-2) > x_nmk.size(-1)
    if tall:  # the Gram matrix of the shorter side is the cheaper one
        x_nmk = x_nmk.mT
    for _ in range(steps):
        gram_nmm = x_nmk @ x_nmk.mT
        polynomial_nmm = torch.baddbmm(gram_nmm, gram_nmm, gram_nmm, beta=_B, alpha=_C)
        x_nmk = torch.baddbmm(x_nmk, polynomial_nmm, x_nmk, beta=_A)
    return x_nmk.mT if tall else x_nmk
