"""From a shape and a layout to modules."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.model.bert.module import BertModule
from megatron_grow.model.chunks import build_chunks
from megatron_grow.model.layers.local import local_layer
from megatron_grow.model.layers.norms import Norm
from megatron_grow.model.layers.pooling import pooling
from megatron_grow.model.layers.post_norm import normalise_sums
from megatron_grow.parallel.process_groups import is_first_chunk, is_last_chunk


def build_bert(
    model: ModelConfig,
    config: TransformerConfig,
    train: TrainSection,
    *,
    post_norm: bool,
    pool_size: int,
    **options: Any,
) -> list[torch.nn.Module]:
    """This rank's chunks of the model, as :meth:`.architecture.Architecture.build`.

    Args:
        model: the shape.
        config: what megatron-core knows of it.
        train: the precision.
        post_norm: whether norms follow the sums of the residual stream.
        pool_size: tokens that share a place behind the first layer.
        options: others of :class:`.module.BertModule`.
    """
    layer = local_layer(config, AttnMaskType.padding)
    if post_norm:
        normalise_sums(layer, config)
    layers = [layer] * model.num_layers
    if layers and pool_size > 1:
        layers[0] = pooling(layer)
    options |= {"post_norm": post_norm, "pool_size": pool_size if layers else 1}
    chunk = partial(_build_chunk, model, config, options)
    return build_chunks(config, train, layers, Norm, chunk)


def _build_chunk(
    model: ModelConfig,
    config: TransformerConfig,
    options: Mapping[str, Any],
    block: TransformerBlockSubmodules,
    number: int,
) -> BertModule:
    return BertModule(
        config,
        block,
        vocab_size=model.vocabulary,
        padded_vocab_size=model.padded_vocab_size(config.tensor_model_parallel_size),
        max_sequence_length=model.max_position_embeddings,
        pre_process=is_first_chunk(number),
        post_process=is_last_chunk(number),
        share_embeddings_and_output_weights=model.share_embeddings_and_output_weights,
        vp_stage=number,
        **options,
    )
