"""The axis table: what an axis of a tensor is, what grows it, and which ranks share it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class MeshDim(Enum):
    """A dimension of the mesh of ranks that partitions tensors.

    Data parallelism is none of them. Its replicas hold the same boxes, or, under the distributed
    optimizer, flat ranges of them.
    """

    TENSOR = "tensor"
    """Each rank has one of as many equal runs. The last may end in padding, or be nothing else:
    then the box that a rank holds is empty."""
    EXPERT = "expert"
    """As tensor; over the ranks that share the experts of a layer."""
    EXPERT_TENSOR = "expert_tensor"
    """As tensor; over the ranks that share an expert."""
    PIPELINE = "pipeline"
    """Each rank has single entries, as megatron-core's layout says."""


@dataclass(frozen=True)
class AxisRule:
    """A row of the table; two of one name grow alike, and may be partitioned in two ways."""

    name: str
    grown_by: str | None = field(default=None, compare=False)
    """Key of ``grow:`` whose operator grows it: one of ``GROW_KEYS``; None: nothing does."""
    fields: tuple[str, ...] = field(default=(), compare=False)
    """Those of ``model`` that decide its size; ranks that share it divide each of them."""
    sized_by: str = field(default="", compare=False)
    """What a message calls its size: mostly the field; absent, the name."""
    partitioned_by: MeshDim | None = field(default=None, compare=False)
    """None: every rank has all of it."""
    padded: bool = field(default=False, compare=False)
    """Ranks that do not divide its size share it all the same, and pad it."""
    may_shrink: bool = field(default=False, compare=False)
    """An operator may make it smaller, or refuses that with a better message than the fields'."""
    stacks: bool = field(default=False, compare=False)
    """Its entries are tensors of their own, as layers are: it stands before all others."""
    activated: bool = field(default=False, compare=False)
    """An activation stands between who produces it and the norm that sees it."""
    follows: str | None = field(default=None, compare=False)
    """Name of the axis whose entries it begins with; what it has behind them does not grow."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sized_by", self.sized_by or self.name)


LAYER = AxisRule("layer", "depth", ("num_layers",), "num_layers", MeshDim.PIPELINE, stacks=True)
HIDDEN = AxisRule("hidden", "width", ("hidden_size",), "hidden_size")
KV_GROUP = AxisRule(
    "kv_group",
    "heads",
    ("num_attention_heads", "num_query_groups"),
    "num_query_groups",
    MeshDim.TENSOR,
    may_shrink=True,
)
QUERY_HEAD = AxisRule(
    "query_head", "heads", ("num_attention_heads",), "num_attention_heads / num_query_groups"
)
QKV_HEAD = AxisRule(
    "qkv_head", "heads", QUERY_HEAD.fields, QUERY_HEAD.sized_by, follows=QUERY_HEAD.name
)
"""A group's query heads, its key head and its value head."""
HEAD_DIM = AxisRule(
    "head_dim",
    "heads",
    ("kv_channels",),
    "kv_channels (hidden_size / num_attention_heads)",
    may_shrink=True,
)
GATE_UP = AxisRule("gate_up")
"""The gate, and what it gates."""
FFN = AxisRule("ffn", "ffn", ("ffn_hidden_size",), "ffn_hidden_size", MeshDim.TENSOR)
VOCAB = AxisRule(
    "vocab", "vocab", ("vocab_size",), "vocab_size", MeshDim.TENSOR, padded=True, may_shrink=True
)
POSITION = AxisRule(
    "position", "positions", ("max_position_embeddings",), "max_position_embeddings"
)

AXES = (
    LAYER,
    HIDDEN,
    KV_GROUP,
    QUERY_HEAD,
    QKV_HEAD,
    HEAD_DIM,
    GATE_UP,
    FFN,
    VOCAB,
    POSITION,
)
"""In the order in which a growth is told. An architecture may have rows of its own: each axis of a
tensor brings its row."""

GROW_KEYS = tuple(dict.fromkeys(rule.grown_by for rule in AXES if rule.grown_by))
"""What ``grow:`` of a run file can hold an operator for."""


class Role(Enum):
    """What a tensor does along an axis; decides how a duplicate is made."""

    INDEX = "index"
    """Selects among independent entries (layer, token, position)."""
    PRODUCES = "produces"
    """Rows: a duplicate entry is copied."""
    CONSUMES = "consumes"
    """Columns: duplicates of an input share its weight."""


@dataclass(frozen=True)
class Axis:
    """A labelled axis of a tensor."""

    rule: AxisRule
    size: int
    role: Role
    multiple: int | None = None
    """Ranks that share it have room for a multiple of this each: what lies behind ``size`` is
    padding, and no part of the tensor. None: they share the entries evenly."""
    reserved: int = 0
    """So many of its first entries are for other uses than those behind them, and stay in place."""
    fuses: tuple[int, ...] = ()
    """How many of its entries each of several matrices has that are fused along it, in order."""

    @property
    def name(self) -> str:
        """Of its row."""
        return self.rule.name
