"""GPTs as stock Megatron-LM builds them, with known values, and the arguments it stores."""

from __future__ import annotations

import zlib
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.enums import AttnBackend

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import TrainSection
from megatron_grow.model.engine_config import transformer_config
from megatron_grow.parallel import process_groups
from megatron_grow.parallel.process_groups import is_first_chunk, is_last_chunk
from tests.toy import MODEL

GPT2 = replace(MODEL, num_query_groups=None)
LLAMA = replace(
    MODEL,
    activation="swiglu",
    add_bias_linear=False,
    normalization="RMSNorm",
    position_embedding_type="rope",
    share_embeddings_and_output_weights=False,
)
QWEN3 = replace(LLAMA, qk_layernorm=True, share_embeddings_and_output_weights=True)
QWEN2 = replace(LLAMA, add_qkv_bias=True)
PADDED = replace(LLAMA, vocab_size=100, make_vocab_size_divisible_by=64)
"""To 128 rows, on one rank as on two."""
MODELS = {"gpt2": GPT2, "llama": LLAMA, "qwen2": QWEN2, "qwen3": QWEN3}

STEP, BATCH, LENGTH = 7, 8, 16


def layout(tp: int = 1, pp: int = 1, vpp: int | None = None) -> ParallelConfig:
    """A layout; ``vpp`` chunks on each pipeline rank."""
    return ParallelConfig(
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp,
    )


def stock_args(model: ModelConfig, parallel: ParallelConfig, **more: Any) -> Namespace:
    """What Megatron-LM 0.16.1 stores as ``args``, as far as it describes model and progress."""
    grouped = model.query_groups != model.num_attention_heads
    args = dict(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_size,
        num_attention_heads=model.num_attention_heads,
        group_query_attention=grouped,
        num_query_groups=model.query_groups if grouped else 1,
        kv_channels=model.head_dim,
        seq_length=LENGTH,
        max_position_embeddings=model.max_position_embeddings,
        position_embedding_type=model.position_embedding_type,
        add_position_embedding=True,
        rotary_base=10000,
        rotary_percent=1.0,
        rotary_interleaved=False,
        normalization=model.normalization,
        layernorm_epsilon=1e-5,
        layernorm_zero_centered_gamma=False,
        swiglu=model.activation == "swiglu",
        squared_relu=False,
        openai_gelu=False,
        add_bias_linear=model.add_bias_linear,
        add_qkv_bias=model.add_bias_linear or model.add_qkv_bias,
        qk_layernorm=model.qk_layernorm,
        untie_embeddings_and_output_weights=not model.share_embeddings_and_output_weights,
        init_method_std=0.02,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        softmax_type="vanilla",
        num_experts=None,
        moe_layer_freq=1,
        multi_latent_attention=False,
        mtp_num_layers=None,
        window_size=None,
        is_hybrid_model=False,
        spec=None,
        vocab_size=None,
        padded_vocab_size=model.padded_vocab_size(parallel.tensor_model_parallel_size),
        make_vocab_size_divisible_by=model.make_vocab_size_divisible_by,
        tokenizer_type="GPT2BPETokenizer",
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        pipeline_model_parallel_layout=None,
        decoder_first_pipeline_num_layers=None,
        decoder_last_pipeline_num_layers=None,
        account_for_embedding_in_pipeline_split=False,
        account_for_loss_in_pipeline_split=False,
        attention_backend=AttnBackend.auto,
        params_dtype=torch.float32,
        bf16=False,
        fp16=False,
        train_iters=20,
        global_batch_size=BATCH,
        micro_batch_size=1,
        optimizer="adam",
        lr=1e-2,
        min_lr=0.0,
        weight_decay=0.01,
        clip_grad=1.0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_eps=1e-8,
        lr_decay_style="cosine",
        lr_warmup_fraction=None,
        lr_warmup_iters=2,
        lr_wsd_decay_style="exponential",
        lr_wsd_decay_iters=None,
        consumed_train_samples=STEP * BATCH,
        no_save_optim=None,
        no_save_rng=None,
        use_distributed_optimizer=False,
        ckpt_format="torch_dist",
    )
    return Namespace(**args | more)


def build(model: ModelConfig, parallel: ParallelConfig) -> list[GPTModel]:
    """This rank's chunks of megatron-core's own model, painted."""
    process_groups.set_up(parallel, seed=1)
    train = TrainSection()
    config = transformer_config(model, parallel, train)
    spec = get_gpt_layer_local_spec(
        qk_layernorm=model.qk_layernorm, normalization=model.normalization
    )
    chunks = [
        GPTModel(
            config=config,
            transformer_layer_spec=spec,
            vocab_size=model.padded_vocab_size(parallel.tensor_model_parallel_size),
            max_sequence_length=model.max_position_embeddings,
            pre_process=is_first_chunk(number),
            post_process=is_last_chunk(number),
            share_embeddings_and_output_weights=model.share_embeddings_and_output_weights,
            position_embedding_type=model.position_embedding_type,
            vp_stage=number,
        )
        for number in range(parallel.model_chunks)
    ]
    for shard in shards(chunks):
        whole = painted(shard.key, tuple(shard.global_shape))
        shard.data.data.copy_(whole[within(shard)].view(shard.data.shape))
    return chunks


def shards(chunks: Sequence[GPTModel]) -> Iterator[ShardedTensor]:
    """Every weight of this rank, and where megatron-core says that it belongs."""
    for chunk in chunks:
        for entry in chunk.sharded_state_dict().values():
            for shard in entry.build() if isinstance(entry, ShardedTensorFactory) else [entry]:
                if isinstance(shard, ShardedTensor):
                    yield shard


def within(shard: ShardedTensor) -> tuple[slice, ...]:
    """A shard's place in its whole tensor."""
    shape = (*(1,) * shard.prepend_axis_num, *shard.local_shape)
    return tuple(slice(o, o + n) for o, n in zip(shard.global_offset, shape, strict=True))


def painted(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A whole tensor's values, which are those of no other."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    return torch.randn(shape, generator=generator)
