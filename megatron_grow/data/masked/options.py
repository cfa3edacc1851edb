"""What masked samples can be asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import Count, Range, Share, check_fields


@dataclass(frozen=True)
class MaskedOptions:
    """``data.options`` of an architecture that predicts masked tokens; defaults are BERT's."""

    masked_lm_prob: Annotated[float, Range(above=0, below=1)] = 0.15
    """Share of a sample's tokens to be predicted; special ones count, and are never chosen."""
    masking: Literal["token", "whole_word", "span"] = "token"
    """What is chosen as one: tokens, words, or spans of words (SpanBERT)."""
    longest_span: Count = 10
    """With ``span``: words in one, at most."""
    span_prob: Annotated[float, Range(above=0, below=1)] = 0.2
    """With ``span``: p of the geometric distribution of its words, cut off above the longest."""
    mask_token_prob: Share = 0.8
    """Share of the chosen tokens that the model reads as the mask token."""
    random_token_prob: Share = 0.1
    """Share that it reads as any other token, special ones excepted; the rest it reads as it is."""
    short_seq_prob: Share = 0.1
    """Share of samples that are filled up to a length drawn at random, not to the whole."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.mask_token_prob + self.random_token_prob > 1:
            raise UserError(
                f"mask_token_prob={self.mask_token_prob} and random_token_prob="
                f"{self.random_token_prob} are shares of the same tokens; together at most 1"
            )

    def most_masked(self, length: int) -> int:
        """Masked tokens of a sample of ``length`` tokens, special ones counted, at most."""
        return max(1, round(self.masked_lm_prob * length))
