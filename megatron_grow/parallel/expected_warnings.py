"""What megatron-core and torch say at every start about things that are as they should be here."""

from __future__ import annotations

import warnings

_EXPECTED = (
    "Transformer Engine and Apex are not installed",  # both are optional
    "Apex is not installed",
    "full scope is deprecated",  # megatron-core's own default
    "`torch.distributed",  # names that megatron-core still uses
    # Layers that share have buckets of their own, in the order of registration.
    "The next bucket's parameter all-gather operation has already been dispatched",
    "The .grad attribute of a Tensor that is not a leaf",  # fp32 shards are views
)


def ignore_expected_warnings() -> None:
    """Keep them from the console; to be called before megatron-core is imported."""
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message=message)
