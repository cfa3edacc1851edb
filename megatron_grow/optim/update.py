"""An optimizer step in parts, so that others can act between them."""

from __future__ import annotations

from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32

from megatron_grow.optim.state import inner_optimizers


def clip(optimizer: MegatronOptimizer, grad_norm: float) -> None:
    """Scale gradients that are ready down to ``clip_grad``, if their norm exceeds it."""
    for wrapper in optimizer.chained_optimizers:
        clip_grad = wrapper.config.clip_grad
        if clip_grad > 0.0 and not wrapper.is_stub_optimizer and wrapper.get_parameters():
            clip_grad_by_total_norm_fp32(wrapper.get_parameters(), clip_grad, grad_norm)


def step(optimizer: MegatronOptimizer) -> None:
    """Update main parameters and state, as megatron-core's ``step`` would; the model waits."""
    for inner in inner_optimizers(optimizer):
        inner.step()
