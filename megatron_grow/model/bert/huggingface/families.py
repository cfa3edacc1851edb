"""The families of Hugging Face models, each a table of what ``config.json`` says and means."""

from __future__ import annotations

from typing import Any

from megatron_grow.model.bert.huggingface import names
from megatron_grow.model.bert.huggingface.family import BERTFamily
from megatron_grow.model.huggingface import Family, Rows

_HARMLESS = """
    classifier_dropout directionality pad_token_id pooler_fc_size pooler_num_attention_heads
    pooler_num_fc_layers pooler_size_per_head pooler_type
"""
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu2": "squared_relu",
}


def _family(
    model_type: str,
    name: str,
    rows: Rows,
    prefix: str,
    activations: dict[str, str],
    defaults: dict[str, Any],
    **more: Any,
) -> BERTFamily:
    return BERTFamily(
        model_type=model_type,
        transformers_class=f"{name}ForMaskedLM",
        prefix=prefix,
        rows=rows,
        buffers=r"embeddings\.(position_ids|token_type_ids)",
        model={
            "architecture": "bert",
            "position_embedding_type": "learned_absolute",
            "normalization": "LayerNorm",
            "add_bias_linear": True,
            "qk_layernorm": False,
        },
        fields={
            "num_hidden_layers": "num_layers",
            "hidden_size": "hidden_size",
            "num_attention_heads": "num_attention_heads",
            "intermediate_size": "ffn_hidden_size",
            "vocab_size": "vocab_size",
            "max_position_embeddings": "max_position_embeddings",
            "layer_norm_eps": "layernorm_epsilon",
            "tie_word_embeddings": "share_embeddings_and_output_weights",
            "initializer_range": "init_method_std",
            "hidden_dropout_prob": "hidden_dropout",
            "attention_probs_dropout_prob": "attention_dropout",
        },
        activation_field="hidden_act",
        activations=activations,
        defaults={
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "tie_word_embeddings": True,
            "initializer_range": 0.02,
            "hidden_dropout_prob": 0.1,
            "attention_probs_dropout_prob": 0.1,
            "type_vocab_size": 2,
            **defaults,
        },
        only={
            "is_decoder": False,
            "add_cross_attention": False,
            "position_embedding_type": "absolute",
        },
        plain_heads=True,
        harmless=frozenset(_HARMLESS.split()),
        old_names={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
        # A model of masked tokens has no pooler; files of checkpoints have it all the same.
        unused=r"pooler\.dense\.(weight|bias)",
        **more,
    )


FAMILIES: dict[str, Family] = {
    family.model_type: family
    # No model could be written as several.
    for family in (
        _family(
            "bert",
            "Bert",
            names.BERT,
            "bert.",
            _ACTIVATIONS,
            defaults={},
            with_sentence_head="BertForPreTraining",
        ),
        _family(
            "megatron-bert",
            "MegatronBert",
            names.MEGATRON_BERT,
            "bert.",
            _ACTIVATIONS,
            defaults={},
            norm_position="pre",
            with_sentence_head="MegatronBertForPreTraining",
        ),
        _family(
            "roberta",
            "Roberta",
            names.ROBERTA,
            "roberta.",
            {"gelu": "gelu"},  # which its head has in any case
            defaults={"pad_token_id": 1},
            positions_follow_pad=True,
        ),
    )
}
