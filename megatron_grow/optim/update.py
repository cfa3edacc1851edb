"""An optimizer step in two halves, so that what the gradients show can decide on the update."""

from __future__ import annotations

from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32


def gradient_norm(optimizer: MegatronOptimizer) -> float:
    """Make the gradients ready; their norm over all parameters, the same on every rank."""
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())


def apply(optimizer: MegatronOptimizer, grad_norm: float) -> None:
    """Clip the gradients by ``grad_norm`` and update, as megatron-core's ``step`` would go on."""
    for wrapper in optimizer.chained_optimizers:
        clip_grad = wrapper.config.clip_grad
        if clip_grad > 0.0 and not wrapper.is_stub_optimizer and wrapper.get_parameters():
            clip_grad_by_total_norm_fp32(wrapper.get_parameters(), clip_grad, grad_norm)
    optimizer.step_with_ready_grads()
