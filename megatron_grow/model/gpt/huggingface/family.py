"""What families of GPTs say that no table holds: attention heads, windows, rotary positions."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.gpt.huggingface import rope
from megatron_grow.model.huggingface import Family

_HARMLESS = """
    is_llama_config n_special predict_special_tokens pretraining_tp reorder_and_upcast_attn
    summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
"""


@dataclass(frozen=True)
class GPTFamily(Family):
    """A family of GPTs."""

    nullable: frozenset[str] = frozenset({"head_dim", "n_ctx", "n_inner", "num_key_value_heads"})
    harmless: frozenset[str] = frozenset(_HARMLESS.split())
    whole_heads: bool = False
    """Whether hidden_size must be a multiple of the number of heads."""

    @property
    def rotary(self) -> bool:
        """Whether positions are rotary."""
        return self.model["position_embedding_type"] == "rope"

    @property
    def own_fields(self) -> frozenset[str]:
        """Those of layers' kinds and rotary positions."""
        return frozenset({"layer_types", *(rope.FIELDS if self.rotary else ())})

    def settle(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """A window that is as long as the context changes nothing; shorter ones are refused."""
        kinds = said.get("layer_types") or []
        if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
            raise UserError(
                f"layer_types={str(kinds)[:80]} cannot be expressed here; only 'full_attention' can"
            )
        window, context = said.get("sliding_window"), said.get("max_position_embeddings")
        windowed = said.get("use_sliding_window", True) and not kinds
        if windowed and window is not None:
            # A first few layers may have none.
            layers, first = said.get("num_hidden_layers"), said.get("max_window_layers", 0)
            for value in (window, context, layers, first):
                if not isinstance(value, int):
                    raise UserError(f"sliding_window={window!r}: {value!r} is not a whole number")
            if window < context and first < layers:
                raise UserError(
                    f"sliding_window={window} is shorter than max_position_embeddings={context}, "
                    "which cannot be expressed here; for a model of shorter sequences set "
                    f"max_position_embeddings to {window}"
                )
        return {**said, "sliding_window": None, "use_sliding_window": False}

    def own_model(self, said: Mapping[str, Any], stored: Collection[str]) -> dict[str, Any]:
        """Rotary positions."""
        return rope.from_config(said) if self.rotary else {}

    def own_config(self, model: ModelConfig, original: Mapping[str, Any]) -> dict[str, Any]:
        """Rotary positions."""
        return rope.to_config(model) if self.rotary else {}

    def obstacle(self, model: ModelConfig) -> str | None:
        """Rotary positions scaled twice, and heads of sizes that the family does not have."""
        if (
            self.rotary
            and model.use_rope_scaling
            and model.rotary_seq_len_interpolation_factor is not None
        ):
            return "model.rotary_seq_len_interpolation_factor with model.use_rope_scaling"
        if self.whole_heads and model.hidden_size % model.num_attention_heads:
            return (
                f"model.hidden_size={model.hidden_size} with "
                f"model.num_attention_heads={model.num_attention_heads}"
            )
        return super().obstacle(model)
