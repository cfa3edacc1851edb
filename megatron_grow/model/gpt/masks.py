"""Where units of a GPT can be masked."""

from __future__ import annotations

import torch
from megatron.core.utils import unwrap_model

from megatron_grow.model.masks import MaskPoints


def mask_points(chunk: torch.nn.Module) -> MaskPoints:
    """Those of a chunk with layers of the local implementation."""
    gpt, points = unwrap_model(chunk), MaskPoints()
    if gpt.pre_process:
        points.streams.append(gpt.embedding)
    for layer in gpt.decoder.layers:
        points.add_branches(layer)
        points.norms += [layer.input_layernorm, layer.pre_mlp_layernorm]
    if gpt.post_process:
        points.norms.append(gpt.decoder.final_layernorm)
    return points
