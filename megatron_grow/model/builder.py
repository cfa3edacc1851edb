"""One builder for every GPT: from a shape and a layout to megatron-core modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
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
from megatron.core.utils import get_model_config
from torch.nn import functional

from megatron_grow.config.errors import UserError
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.model.attention import ScaledDotProductAttention
from megatron_grow.model.gpt import GPT
from megatron_grow.model.norms import Norm
from megatron_grow.parallel import cpu
from megatron_grow.parallel.process_groups import is_first_chunk, is_last_chunk


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


def wrap_data_parallel(
    chunks: Sequence[torch.nn.Module], parallel: ParallelConfig, distributed_optimizer: bool
) -> list[DistributedDataParallel]:
    """Give a model's chunks gradient buffers and their reduction over data-parallel ranks.

    ``distributed_optimizer`` says whether the optimizer shards its state: not all do.
    """
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=distributed_optimizer,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather and distributed_optimizer,
        bucket_size=parallel.bucket_size,
    )
    engine = get_model_config(chunks[0])
    wrapped = [
        # Reductions of later chunks overlap with the backward pass of earlier ones as they are.
        DistributedDataParallel(engine, config, chunk, disable_bucketing=number > 0)
        for number, chunk in enumerate(chunks)
    ]
    # The interleaved schedule takes a list of these, the others take one.
    if parallel.overlap_grad_reduce:
        engine.no_sync_func = _one_or_all([chunk.no_sync for chunk in wrapped])
    if config.overlap_param_gather:
        engine.param_sync_func = _one_or_all([chunk.start_param_sync for chunk in wrapped])
    return wrapped


def _one_or_all(hooks: list[Callable]) -> Callable | list[Callable]:
    return hooks if len(hooks) > 1 else hooks[0]


def transformer_config(
    model: ModelConfig, parallel: ParallelConfig, train: TrainSection
) -> TransformerConfig:
    """megatron-core's configuration for ``model``."""
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
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.sequence_parallel and parallel.tensor_model_parallel_size > 1,
        bf16=bf16,
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
    )


def _leave_uninitialised(weight: torch.Tensor) -> torch.Tensor:
    return weight


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
