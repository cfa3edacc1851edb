"""Rotary embeddings in one compiled function, from tables that are made once."""

from __future__ import annotations

import torch
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.transformer.attention import SelfAttention
from torch.utils.weak import WeakIdKeyDictionary

from megatron_grow.model.kernels.compiling import compiled

_tables: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By the angles that megatron-core keeps for a length: cosines and sines in each type."""


def fuse(module: torch.nn.Module) -> None:
    """Let megatron-core's self-attention ask for its fused function, which is ours.

    It is Transformer Engine's, where that is there.
    """
    if isinstance(module, SelfAttention):
        if rope_utils.fused_apply_rotary_pos_emb is None:
            rope_utils.fused_apply_rotary_pos_emb = rotate
        module.config.apply_rope_fusion = True


def rotate(x: torch.Tensor, angles: torch.Tensor, interleaved: bool = False) -> torch.Tensor:
    """Turn pairs of the first entries of each head by the angles of its place.

    Args:
        x: (sequence, batch, heads, head size).
        angles: (sequence, 1, 1, entries that are turned), fp32, each twice.
        interleaved: whether the entries of a pair are neighbours, or halves apart.
    """
    cos, sin = _cos_sin(angles, x.dtype)
    return _rotate(x, cos, sin, interleaved)


def _cos_sin(angles: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    if torch.compiler.is_compiling():  # in a compiled layer: a table would end its graph
        return angles.cos().to(dtype), angles.sin().to(dtype)
    tables = _tables.setdefault(angles, {})
    if dtype not in tables:
        tables[dtype] = angles.cos().to(dtype), angles.sin().to(dtype)
    return tables[dtype]


@compiled
def _rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool
) -> torch.Tensor:
    size = cos.shape[-1]
    turned = x[..., :size]
    turned = turned * cos + _perpendicular(turned, interleaved) * sin
    return turned if size == x.shape[-1] else torch.cat((turned, x[..., size:]), dim=-1)


def _perpendicular(x: torch.Tensor, interleaved: bool) -> torch.Tensor:
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)
