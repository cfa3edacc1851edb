"""From a shape and a layout to megatron-core modules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_block import LayerNormImpl, TransformerBlockSubmodules

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.chunks import build_chunks
from megatron_grow.model.gpt.module import GPTModule
from megatron_grow.model.layers.local import local_layer
from megatron_grow.model.layers.norms import Norm
from megatron_grow.parallel.process_groups import is_first_chunk, is_last_chunk


def build_gpt(
    model: ModelConfig,
    config: TransformerConfig,
    train: TrainSection,
    layers: Sequence[ModuleSpec],
) -> list[torch.nn.Module]:
    """This rank's chunks of the model, in order, under the process groups of the current stage.

    As :meth:`.architecture.Architecture.build`, of layers as ``layers`` says of each.
    """
    norm = Norm if train.transformer_impl == "local" else LayerNormImpl
    return build_chunks(config, train, layers, norm, partial(_build_chunk, model, config))


def _build_chunk(
    model: ModelConfig,
    config: TransformerConfig,
    block: TransformerBlockSubmodules,
    number: int,
) -> GPTModule:
    return GPTModule(
        config,
        block,
        vocab_size=model.vocabulary,
        padded_vocab_size=model.padded_vocab_size(config.tensor_model_parallel_size),
        max_sequence_length=model.max_position_embeddings,
        pre_process=is_first_chunk(number),
        post_process=is_last_chunk(number),
        share_embeddings_and_output_weights=model.share_embeddings_and_output_weights,
        position_embedding_type=model.position_embedding_type,
        rotary_percent=model.rotary_percent,
        rotary_base=model.rotary_base,
        seq_len_interpolation_factor=model.rotary_seq_len_interpolation_factor,
        rope_scaling=model.use_rope_scaling,
        rope_scaling_factor=model.rope_scaling_factor,
        vp_stage=number,
    )


def layer_spec(config: TransformerConfig, train: TrainSection) -> ModuleSpec:
    """megatron-core's specification of a layer."""
    if train.transformer_impl == "local":
        return local_layer(config, AttnMaskType.causal)
    try:
        import transformer_engine  # noqa: F401
    except ImportError as error:
        raise UserError(
            "train.transformer_impl=transformer_engine, but Transformer Engine does not "
            f"import ({error}); use local"
        ) from error
    return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
