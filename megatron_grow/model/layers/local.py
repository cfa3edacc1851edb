"""A transformer layer of modules that need neither Transformer Engine nor Apex."""

from __future__ import annotations

from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.enums import AttnMaskType

from megatron_grow.model.layers.attention import ScaledDotProductAttention
from megatron_grow.model.layers.norms import Norm


def local_layer(config: TransformerConfig, mask: AttnMaskType) -> ModuleSpec:
    """megatron-core's specification of one, whose norms begin the branches.

    Args:
        config: of the model.
        mask: what is not attended to.
    """
    spec = get_gpt_layer_local_spec(
        qk_layernorm=config.qk_layernorm, normalization=config.normalization
    )
    parts = spec.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = Norm
    parts.self_attention.params = {"attn_mask_type": mask}
    attention = parts.self_attention.submodules
    attention.core_attention = ScaledDotProductAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = Norm
    return spec
