"""megatron-core's configuration of a transformer, of whatever architecture."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer import TransformerConfig
from torch.nn import functional

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import TrainSection


def _squared_relu(x: torch.Tensor) -> torch.Tensor:
    # megatron-core's is compiled at first use, for which a CPU needs a C++ compiler.
    return functional.relu(x).square()


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh")


_ACTIVATIONS = {
    "gelu": functional.gelu,
    "gelu_tanh": _gelu_tanh,
    "swiglu": functional.silu,
    "squared_relu": _squared_relu,
}


def transformer_config(
    model: ModelConfig, parallel: ParallelConfig, train: TrainSection, **more: Any
) -> TransformerConfig:
    """megatron-core's configuration for ``model``.

    Args:
        model: the shape.
        parallel: the layout.
        train: the precision, and what is recomputed.
        more: what an architecture sets besides.
    """
    bf16 = train.precision == "bf16"
    full = train.recompute_granularity == "full"
    interleaved = parallel.model_chunks > 1
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.query_groups,
        kv_channels=model.head_dim,
        ffn_hidden_size=model.ffn_size,
        normalization=model.normalization,
        layernorm_epsilon=model.layernorm_epsilon,
        activation_func=_ACTIVATIONS[model.activation],
        gated_linear_unit=model.gated,
        add_bias_linear=model.add_bias_linear,
        add_qkv_bias=model.add_qkv_bias,
        qk_layernorm=model.qk_layernorm,
        softmax_scale=model.softmax_scale,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.model_chunks if interleaved else None,
        account_for_embedding_in_pipeline_split=parallel.account_for_embedding_in_pipeline_split,
        account_for_loss_in_pipeline_split=parallel.account_for_loss_in_pipeline_split,
        num_layers_in_first_pipeline_stage=parallel.num_layers_in_first_pipeline_stage,
        num_layers_in_last_pipeline_stage=parallel.num_layers_in_last_pipeline_stage,
        pipeline_model_parallel_layout=parallel.pipeline_model_parallel_layout,
        expert_model_parallel_size=parallel.expert_model_parallel_size,
        expert_tensor_parallel_size=parallel.expert_tensor_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.sequence_parallel and parallel.tensor_model_parallel_size > 1,
        bf16=bf16,
        fp8=train.fp8,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        pipeline_dtype=torch.bfloat16 if bf16 else torch.float32,
        recompute_granularity=train.recompute_granularity,
        recompute_method="uniform" if full else None,
        recompute_num_layers=train.recompute_num_layers if full else None,
        recompute_modules=["core_attn"] if train.recompute_granularity == "selective" else None,
        # A given method also keeps a model without layers from dividing by its depth.
        init_method=_leave_uninitialised,
        output_layer_init_method=_leave_uninitialised,
        deallocate_pipeline_outputs=True,
        # Two ranks are neighbours on both sides: a batch would mix up the two directions.
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        batch_p2p_sync=False,  # for old versions of torch: waits for the GPU at every message
        attention_softmax_in_fp32=False,
        # These need Apex or Transformer Engine, or a GPU.
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        **more,
    )


def _leave_uninitialised(weight: torch.Tensor) -> torch.Tensor:
    return weight
