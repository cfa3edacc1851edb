"""Gradients of matrices, added to the fp32 buffer by the product itself."""

from __future__ import annotations

import functools

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear, layers


class Accumulation:
    """What megatron-core asks of Apex's extension ``fused_weight_gradient_mlp_cuda``, by torch."""

    @staticmethod
    def wgrad_gemm_accum_fp32(
        inputs: torch.Tensor, gradient: torch.Tensor, main_grad: torch.Tensor
    ) -> None:
        """Add the gradient of a weight to ``main_grad``.

        Args:
            inputs: (tokens, columns).
            gradient: (tokens, rows), of the outputs, in the same type.
            main_grad: (rows, columns), fp32.
        """
        if inputs.dtype is main_grad.dtype:
            main_grad.addmm_(gradient.t(), inputs)
        elif main_grad.device.type == "cpu":  # whose torch has no such product
            main_grad.add_(gradient.t() @ inputs)
        else:
            torch.addmm(main_grad, gradient.t(), inputs, out_dtype=main_grad.dtype, out=main_grad)


def fuse(module: torch.nn.Module) -> None:
    """Let a linear layer add its gradient so: megatron-core's as it would with Apex."""
    if isinstance(module, (ColumnParallelLinear, RowParallelLinear)):
        if not layers._grad_accum_fusion_available:
            layers.fused_weight_gradient_mlp_cuda = Accumulation
        module.gradient_accumulation_fusion = True
    elif hasattr(module, "fuse_wgrad_accumulation"):  # Transformer Engine's
        module.fuse_wgrad_accumulation = True  # type: ignore[assignment]


@functools.cache
def lacks(device: torch.device) -> str | None:
    """What this torch would need to do it on ``device``; None if nothing."""
    if device.type != "cuda":
        return None
    ones = torch.ones(16, 16, dtype=torch.bfloat16, device=device)
    total = torch.ones(16, 16, device=device)
    try:
        Accumulation.wgrad_gemm_accum_fp32(ones, ones, total)
    except (RuntimeError, TypeError):
        return "a torch that adds bf16 products to fp32"
    return None if bool((total == 17.0).all()) else "a torch that adds bf16 products to fp32"
