"""Parameter counts against published sizes and against the transformers library's models."""

from __future__ import annotations

import pytest
import torch
import transformers

from megatron_grow.config.model import ModelConfig
from megatron_grow.cost.parameters import count_parameters
from tests.cost.gpt2 import gpt2

PUBLISHED = {
    (0, 768): 39_420_672,
    (1, 768): 46_500_096,
    (12, 768): 124_373_760,
    (0, 3072): 157_682_688,
    (1, 3072): 270_935_040,
    (60, 3072): 6_952_823_808,
}


@pytest.mark.parametrize(("shape", "size"), PUBLISHED.items())
def test_published_sizes_to_the_digit(shape, size):
    # "No biases" in print covers LayerNorm's; RMSNorm has none to begin with.
    assert count_parameters(gpt2(*shape), biases=False) == size
    assert count_parameters(gpt2(*shape, normalization="RMSNorm")) == size


SIZES = {"num_layers": 3, "hidden_size": 48, "num_attention_heads": 6, "vocab_size": 96}
HF_SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 48,
    "num_attention_heads": 6,
    "vocab_size": 96,
    "intermediate_size": 80,
    "num_key_value_heads": 2,
}
GROUPED = {
    **SIZES,
    "num_query_groups": 2,
    "ffn_hidden_size": 80,
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "activation": "swiglu",
    "add_bias_linear": False,
    "share_embeddings_and_output_weights": False,
}
ARCHITECTURES = {
    "gpt2": (
        transformers.GPT2Config(n_layer=3, n_embd=48, n_head=6, vocab_size=96, n_positions=32),
        ModelConfig(**SIZES, max_position_embeddings=32, make_vocab_size_divisible_by=1),
    ),
    "llama": (
        transformers.LlamaConfig(**HF_SIZES),
        ModelConfig(**GROUPED, make_vocab_size_divisible_by=1),
    ),
    "qwen2, QKV biases alone": (
        transformers.Qwen2Config(**HF_SIZES),
        ModelConfig(**GROUPED, add_qkv_bias=True, make_vocab_size_divisible_by=1),
    ),
    "qwen3, QK-norm, wide heads": (
        transformers.Qwen3Config(**HF_SIZES, head_dim=16),
        ModelConfig(**GROUPED, qk_layernorm=True, kv_channels=16, make_vocab_size_divisible_by=1),
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_transformers(name):
    theirs, ours = ARCHITECTURES[name]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(theirs)
    assert count_parameters(ours) == model.num_parameters()


@pytest.mark.parametrize(
    ("size", "published", "encoder"),
    [((12, 768, 12), 110e6, 109_482_240), ((24, 1024, 16), 335e6, 335_141_888)],
)
@pytest.mark.parametrize("norm_position", ["post", "pre"])
def test_berts_equal_transformers_and_what_was_published(norm_position, size, published, encoder):
    """110M and 335M are the encoder; the whole has the heads of pretraining besides."""
    layers, hidden, heads = size
    model = ModelConfig(
        architecture="bert",
        options={"norm_position": norm_position},
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        vocab_size=30_522,
        max_position_embeddings=512,
    )
    kind = {
        "post": transformers.BertForPreTraining,
        "pre": transformers.MegatronBertForPreTraining,
    }[norm_position]
    config = kind.config_class(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        vocab_size=30_522,
    )
    with torch.device("meta"):
        theirs = kind(config)
    assert count_parameters(model) == theirs.num_parameters()
    assert theirs.bert.num_parameters() == encoder
    assert abs(encoder / published - 1) < 0.005


def test_parts_add_up():
    model = ARCHITECTURES["qwen2, QKV biases alone"][1]
    parts = ("blocks", "embedding", "positions", "final_norm", "head")
    sizes = [count_parameters(model, part=part) for part in parts]
    assert sum(sizes) == count_parameters(model)
    assert sizes[1:] == [96 * 48, 0, 48, 96 * 48]


def test_padding_of_the_vocabulary_does_not_count():
    model = ModelConfig(num_layers=0, hidden_size=8, num_attention_heads=1, vocab_size=130)
    assert count_parameters(model, part="embedding") == 130 * 8
