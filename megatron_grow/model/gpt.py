"""megatron-core's GPT with a loss that stays in the memory of its logits."""

from __future__ import annotations

import torch
from megatron.core.models.gpt import GPTModel

from megatron_grow.model.cross_entropy import vocab_parallel_cross_entropy


class GPT(GPTModel):
    """``GPTModel``, and how it turns logits into losses."""

    def compute_language_model_loss(
        self, labels: torch.Tensor, logits: torch.Tensor
    ) -> torch.Tensor:
        """Losses of ``labels`` (batch, sequence), of that shape, in fp32.

        ``logits``, (sequence, batch, vocabulary of this rank), are overwritten.
        """
        losses = vocab_parallel_cross_entropy(logits, labels.t(), self.tp_group)
        return losses.t().contiguous()
