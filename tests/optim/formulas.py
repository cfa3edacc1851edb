"""Update rules as they stand in the literature, in float64 and without regard to speed."""

from __future__ import annotations

import torch


def orthogonalised(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Newton-Schulz by its definition: the quintic applied to each singular value."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / (matrix.double().norm() + 1e-7)
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ torch.diag(values) @ right


class MuonFormula:
    """Keller Jordan's Muon for one matrix."""

    def __init__(self, lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        self.lr, self.weight_decay, self.momentum = lr, weight_decay, momentum
        self.buffer: torch.Tensor | float = 0.0

    def __call__(self, weight: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        weight, grad, beta = weight.double(), grad.double(), self.momentum
        self.buffer = beta * self.buffer + (1 - beta) * grad
        update = orthogonalised(beta * self.buffer + (1 - beta) * grad)
        rows, cols = weight.shape
        scale = max(1.0, rows / cols) ** 0.5
        return weight * (1 - self.lr * self.weight_decay) - self.lr * scale * update


class NSGDFormula:
    """Normalised SGD with momentum for one tensor."""

    def __init__(self, lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        self.lr, self.weight_decay, self.momentum = lr, weight_decay, momentum
        self.buffer: torch.Tensor | float = 0.0

    def __call__(self, weight: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
        self.buffer = self.momentum * self.buffer + (1 - self.momentum) * grad.double()
        step = self.buffer / self.buffer.norm()
        return weight.double() * (1 - self.lr * self.weight_decay) - self.lr * step
