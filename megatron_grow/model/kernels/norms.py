"""RMS norms, compiled where torch would compute them in five kernels."""

from __future__ import annotations

from types import MethodType

import torch
from torch.nn import functional

from megatron_grow.model.kernels.compiling import compiled
from megatron_grow.model.layers.norms import Norm


def fuse(module: torch.nn.Module) -> None:
    """Let an RMS norm of ours be compiled; torch has a kernel for layer norms."""
    if isinstance(module, Norm) and module.bias is None:
        module.forward = MethodType(_forward, module)


def helps(device: torch.device) -> bool:
    """Whether this torch has no kernel of its own for them on ``device``."""
    key = device.type.upper()
    return not torch._C._dispatch_has_kernel_for_dispatch_key("aten::_fused_rms_norm", key)


def _forward(norm: Norm, x: torch.Tensor) -> torch.Tensor:
    return _rms_norm(x, norm.weight, norm.eps)


@compiled
def _rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return functional.rms_norm(x, weight.shape, weight, eps)
