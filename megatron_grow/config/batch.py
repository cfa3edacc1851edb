"""What one optimizer step reads."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_grow.inputs.ranges import Count, check_fields


@dataclass(frozen=True)
class BatchShape:
    """Sequence length and batch sizes: the fields of ``train`` that a stage may replace."""

    seq_length: Count
    """Tokens in one sequence."""
    global_batch_size: Count
    """Sequences in one optimizer step, over all ranks."""
    micro_batch_size: Count
    """Sequences in one forward pass of one rank."""

    def __post_init__(self) -> None:
        check_fields(self, "train.")

    @property
    def tokens(self) -> int:
        """Tokens in one optimizer step."""
        return self.global_batch_size * self.seq_length

    def describe(self) -> str:
        """A global batch in short, sequences by tokens: ``8 x 1024``."""
        return f"{self.global_batch_size} x {self.seq_length}"
