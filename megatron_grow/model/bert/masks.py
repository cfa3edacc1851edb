"""Where units of a BERT can be masked."""

from __future__ import annotations

import torch
from megatron.core.utils import unwrap_model

from megatron_grow.model.masks import MaskPoints


def mask_points(chunk: torch.nn.Module, *, post_norm: bool) -> MaskPoints:
    """Those of a chunk."""
    bert, points = unwrap_model(chunk), MaskPoints()
    if bert.pre_process and post_norm:
        # The norm reads their sum, which must be masked before.
        parts = bert.embedding
        tables = (parts.word_embeddings, parts.position_embeddings, parts.tokentype_embeddings)
        points.streams += [table for table in tables if table is not None]
        points.norms.append(parts.embedding_dropout[0])
    elif bert.pre_process:
        points.streams.append(bert.embedding)
    for layer in bert.encoder.layers:
        points.add_branches(layer)
        if post_norm:
            sums = layer.self_attn_bda, layer.mlp_bda
            points.norms += [each.norm for each in sums]
            points.sums += [(each, layer.layer_number - 1) for each in sums]
        else:
            points.norms += [layer.input_layernorm, layer.pre_mlp_layernorm]
    if bert.post_process:
        if not post_norm:
            points.norms.append(bert.encoder.final_layernorm)
        points.streams.append(bert.lm_head.dense)
        points.norms.append(bert.lm_head.layer_norm)
        if bert.sentence_head:
            points.streams.append(bert.pooler)
    return points
