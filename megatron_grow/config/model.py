"""The shape of a model."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal

from megatron_grow.config.layer_sharing import unique_layers
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import (
    Count,
    CountOrZero,
    NotNegative,
    Positive,
    Range,
    ShareBelowOne,
    check_fields,
)

Size = Annotated[int, Range(least=1, most=10_000_000)]
"""Along one axis of a tensor: what a growth can list entry by entry."""


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides which tensors a model has and what it computes.

    Field names are those of megatron-core's ``TransformerConfig`` and ``GPTModel``.
    """

    architecture: str = "gpt"
    """``gpt``, or the import path of another (``package.module:Class``)."""
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    """Those of an architecture of one's own, by name."""
    num_layers: Annotated[int, Range(least=0, most=100_000)] = 12
    """Transformer layers; 0 is a model of embeddings, final norm and head."""
    layer_sharing: str | list[CountOrZero] | None = field(default=None, hash=False)
    """Layers that share their parameters: ``AxB``, a unit of A layers that is repeated B times, or
    a list of the unique layer that each layer is, such as ``[0, 0, 1, 1]``; absent: none share."""
    hidden_size: Size = 768
    """Width of the residual stream."""
    num_attention_heads: Size = 12
    """Query heads."""
    num_query_groups: Size | None = None
    """Key/value heads; absent: one for each query head (multi-head attention)."""
    kv_channels: Size | None = None
    """Size of one head; absent: hidden_size / num_attention_heads."""
    ffn_hidden_size: Size | None = None
    """Width of the feed-forward layer; absent: 4 x hidden_size."""
    vocab_size: Size | None = None
    """Tokens, each a row of the embedding; absent: the tokenizer's vocabulary."""
    make_vocab_size_divisible_by: Count = 128
    """Each tensor-parallel rank gets rows of the embedding in a multiple of this. Rows behind the
    vocabulary are padding: zero, in no checkpoint, and without a share in the softmax."""
    max_position_embeddings: Count = 1024
    """Longest sequence that the model can read, in tokens."""
    position_embedding_type: Literal["learned_absolute", "rope"] = "learned_absolute"
    rotary_base: Count = 10000
    """Base period of rotary positions."""
    rotary_percent: Annotated[float, Range(above=0, most=1)] = 1.0
    """Share of each head that is rotated."""
    rotary_seq_len_interpolation_factor: Positive | None = None
    """Divide rotary positions by this (position interpolation)."""
    use_rope_scaling: bool = False
    """Stretch the low frequencies of rotary positions as Llama 3.1 does."""
    rope_scaling_factor: Positive = 8.0
    """How far, with use_rope_scaling."""
    normalization: Literal["LayerNorm", "RMSNorm"] = "LayerNorm"
    layernorm_epsilon: Positive = 1e-5
    activation: Literal["gelu", "gelu_tanh", "swiglu", "squared_relu"] = "gelu"
    """gelu is the exact one; gelu_tanh the approximation that GPT-2 was trained with."""
    add_bias_linear: bool = True
    """Biases in the attention and feed-forward projections."""
    add_qkv_bias: bool = False
    """A bias in the QKV projection alone (Qwen2), when add_bias_linear is false."""
    qk_layernorm: bool = False
    """Normalise queries and keys per head."""
    share_embeddings_and_output_weights: bool = True
    """Tie the head to the token embedding."""
    softmax_scale: Positive | None = None
    """What attention scores are multiplied by; absent: 1 / sqrt(size of a head), or what the
    parametrization says; so with the three below, which are 1."""
    embedding_multiplier: Positive | None = None
    """What the sum of all embeddings of a token is multiplied by."""
    residual_multiplier: Positive | None = None
    """What each residual branch is multiplied by before it is added to the stream."""
    logits_scaling: Positive | None = None
    """What logits are divided by (those of all heads)."""
    init_method_std: NotNegative = 0.02
    """Standard deviation of fresh weights; the two residual outputs of a layer get
    init_method_std / sqrt(2 x the depth of the run's *target*)."""
    hidden_dropout: ShareBelowOne = 0.0
    attention_dropout: ShareBelowOne = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "model.")
        unique_layers(self.layer_sharing, self.num_layers)
        if self.kv_channels is None and self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"model.num_attention_heads={self.num_attention_heads} does not divide "
                f"model.hidden_size={self.hidden_size}; change one of them or set model.kv_channels"
            )
        if self.num_attention_heads % self.query_groups:
            raise UserError(
                f"model.num_query_groups={self.num_query_groups} does not divide "
                f"model.num_attention_heads={self.num_attention_heads}"
            )

        if self.position_embedding_type == "rope":
            rotated = int(self.head_dim * self.rotary_percent)
            if rotated % 2 or not rotated:
                raise UserError(
                    f"model.rotary_percent={self.rotary_percent} of heads of {self.head_dim} are "
                    f"{rotated}; rotary positions turn an even number, at least 2"
                )

    @property
    def resolved(self) -> ModelConfig:
        """The same model, its absent sizes filled in, and the padding, which is the layout's
        affair, the same for all."""
        multipliers: dict[str, Any] = self.multipliers
        return replace(
            self,
            num_query_groups=self.query_groups,
            kv_channels=self.head_dim,
            layer_sharing=None if self.sharing is None else [*self.sharing],
            ffn_hidden_size=self.ffn_size,
            **multipliers,
            make_vocab_size_divisible_by=1,
        )

    @cached_property
    def sharing(self) -> tuple[int, ...] | None:
        """The unique layer that each layer is; None: none share their parameters."""
        return unique_layers(self.layer_sharing, self.num_layers)

    @property
    def unique_layer_of(self) -> tuple[int, ...]:
        """The unique layer that each layer is; itself where none share their parameters."""
        return self.sharing or tuple(range(self.num_layers))

    @property
    def num_unique_layers(self) -> int:
        """How many layers there are of which no two share their parameters."""
        return len({*self.unique_layer_of})

    @property
    def query_groups(self) -> int:
        """Number of key/value heads."""
        return self.num_query_groups or self.num_attention_heads

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def ffn_size(self) -> int:
        """Width of the feed-forward layer."""
        return self.ffn_hidden_size or 4 * self.hidden_size

    @property
    def plain_multipliers(self) -> dict[str, float]:
        """The factors in its function where no field says otherwise, by field."""
        return {
            "softmax_scale": self.head_dim**-0.5,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "logits_scaling": 1.0,
        }

    @property
    def multipliers(self) -> dict[str, float]:
        """The factors in its function, by field."""
        return {
            name: plain if (said := getattr(self, name)) is None else said
            for name, plain in self.plain_multipliers.items()
        }

    @property
    def factors(self) -> dict[str, float]:
        """Those of its multipliers that are not plain, by field."""
        plain = self.plain_multipliers
        return {name: value for name, value in self.multipliers.items() if value != plain[name]}

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer has a gate beside its up projection."""
        return self.activation == "swiglu"

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        if self.vocab_size is None:
            raise UserError("model.vocab_size is absent and no tokenizer was given to supply it")
        return self.vocab_size

    def padded_vocab_size(self, tensor_parallel: int) -> int:
        """Rows of the embedding, padding included, on all of ``tensor_parallel`` ranks together.

        As in Megatron-LM, a multiple of ``make_vocab_size_divisible_by`` for each rank.
        """
        multiple = self.make_vocab_size_divisible_by * tensor_parallel
        return -(-self.vocabulary // multiple) * multiple
