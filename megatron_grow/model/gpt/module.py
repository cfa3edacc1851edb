"""megatron-core's GPT with a loss that stays in the memory of its logits, and knows padding."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt import GPTModel

from megatron_grow.model.layers.cross_entropy import vocab_parallel_cross_entropy


class GPTModule(GPTModel):
    """``GPTModel``, and how it turns logits into losses.

    Rows that pad the vocabulary are zero and stay so: no token looks them up, and their logits have
    neither a share in the loss nor a gradient.
    """

    def __init__(self, *args: Any, vocab_size: int, padded_vocab_size: int, **more: Any) -> None:
        """As ``GPTModel``; rows of the embedding behind ``vocab_size`` are padding."""
        super().__init__(*args, vocab_size=padded_vocab_size, **more)
        self.vocab_size = vocab_size
        part = padded_vocab_size // self.tp_group.size()
        self._tokens_here = max(0, min(vocab_size - self.tp_group.rank() * part, part))
        for name, weight in self.named_parameters():
            if name in ("embedding.word_embeddings.weight", "output_layer.weight"):
                weight.data[self._tokens_here :] = 0.0

    def forward(self, *args: Any, labels: torch.Tensor | None = None, **more: Any) -> torch.Tensor:
        """As ``GPTModel``'s; logits, without ``labels``, are those of this rank's tokens alone."""
        output = super().forward(*args, labels=labels, **more)
        if labels is None and self.post_process:
            return output[..., : self._tokens_here]
        return output

    def compute_language_model_loss(
        self, labels: torch.Tensor, logits: torch.Tensor
    ) -> torch.Tensor:
        """Losses of ``labels`` (batch, sequence), of that shape, in fp32.

        ``logits``, (sequence, batch, padded vocabulary of this rank), are overwritten.
        """
        losses = vocab_parallel_cross_entropy(logits, labels.t(), self.tp_group, self.vocab_size)
        return losses.t().contiguous()
