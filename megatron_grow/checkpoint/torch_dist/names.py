"""Names in a ``torch_dist`` checkpoint; megatron-core's own."""

from __future__ import annotations

from megatron_grow.state.kinds import MAIN_PARAM

METADATA = ".metadata"
"""Where each chunk of each tensor lies."""
COMMON = "common.pt"
"""What megatron-core keeps beside the tensors."""
COMPLETE = "metadata.json"
"""megatron-core's mark of a whole directory."""

STATE_PREFIX = "optimizer.state."
"""Begins the keys of main parameters and moments."""
MAIN_NAMES = ("param", "fp32_param")
"""What main parameters are called in those keys: by the distributed optimizer of Megatron-LM and
here, and by its plain mixed-precision one."""


def tensor_key(key: str, kind: str) -> str:
    """The key under which one kind of state of a tensor is stored."""
    return f"{STATE_PREFIX}{MAIN_NAMES[0] if kind == MAIN_PARAM else kind}.{key}"
