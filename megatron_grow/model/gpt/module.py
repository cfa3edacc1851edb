"""megatron-core's GPT with a loss that stays in the memory of its logits, and knows padding."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel

from megatron_grow.model.layers.vocabulary import PaddedVocabulary


class GPTModule(GPTModel):
    """``GPTModel``, and how it turns logits into losses."""

    def __init__(self, *args: Any, vocab_size: int, padded_vocab_size: int, **more: Any) -> None:
        """As ``GPTModel``; rows of the embedding behind ``vocab_size`` are padding."""
        super().__init__(*args, vocab_size=padded_vocab_size, **more)
        self._vocabulary = PaddedVocabulary(vocab_size, padded_vocab_size, self.tp_group)
        self._vocabulary.clear_padding(self)

    def forward(self, *args: Any, labels: torch.Tensor | None = None, **more: Any) -> torch.Tensor:
        """As ``GPTModel``'s; logits, without ``labels``, are those of this rank's tokens alone."""
        output = super().forward(*args, labels=labels, **more)
        if labels is None and self.post_process:
            return self._vocabulary.without_padding(output)
        return output

    def compute_language_model_loss(
        self, labels: torch.Tensor, logits: torch.Tensor
    ) -> torch.Tensor:
        """Losses of ``labels`` (batch, sequence), of that shape, in fp32.

        ``logits``, (sequence, batch, padded vocabulary of this rank), are overwritten.
        """
        losses, _ = self._vocabulary.losses(logits, labels.t())
        return losses.t().contiguous()
