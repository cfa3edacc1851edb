"""From a shape and a layout to megatron-core modules."""

from __future__ import annotations

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)

from megatron_grow.config.errors import UserError
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.model.engine_config import transformer_config
from megatron_grow.model.gpt.module import GPT
from megatron_grow.model.layers.attention import ScaledDotProductAttention
from megatron_grow.model.layers.norms import Norm
from megatron_grow.parallel import cpu
from megatron_grow.parallel.process_groups import is_first_chunk, is_last_chunk


def build_gpt(
    model: ModelConfig, parallel: ParallelConfig, train: TrainSection
) -> list[torch.nn.Module]:
    """This rank's chunks of the model, in order, under the process groups of the current stage.

    An interleaved pipeline has several on each rank, every other layout one. Weights are *not*
    initialised: whoever builds a model fills it, by a map of fresh values or by a growth, so that
    values do not depend on the layout. Padding of the vocabulary alone is zero.
    """
    config = transformer_config(model, parallel, train)
    return [_build_chunk(model, config, train, number) for number in range(parallel.model_chunks)]


def _build_chunk(
    model: ModelConfig, config: TransformerConfig, train: TrainSection, number: int
) -> torch.nn.Module:
    gpt = GPT(
        config,
        _block_spec(model, config, train, number),
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
    ).to(cpu.device())  # megatron-core makes learned positions on the CPU
    return Float16Module(config, gpt) if train.precision == "bf16" else gpt


def _block_spec(
    model: ModelConfig, config: TransformerConfig, train: TrainSection, chunk: int
) -> TransformerBlockSubmodules | ModuleSpec:
    if train.transformer_impl == "transformer_engine":
        try:
            import transformer_engine  # noqa: F401
        except ImportError as error:
            raise UserError(
                "train.transformer_impl=transformer_engine, but Transformer Engine does not "
                f"import ({error}); use local"
            ) from error
        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=model.qk_layernorm)
    spec = get_gpt_layer_local_spec(
        qk_layernorm=model.qk_layernorm, normalization=model.normalization
    )
    layer = spec.submodules
    layer.input_layernorm = layer.pre_mlp_layernorm = Norm
    attention = layer.self_attention.submodules
    attention.core_attention = ScaledDotProductAttention
    if model.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = Norm
    layers = get_num_layers_to_build(config, vp_stage=chunk)
    return TransformerBlockSubmodules(layer_specs=[spec] * layers, layer_norm=Norm)
