"""A vocabulary that tensor-parallel ranks share, and that is padded for them."""

from __future__ import annotations

import torch
import torch.distributed as dist

from megatron_grow.model.layers.cross_entropy import softmax_, vocab_parallel_cross_entropy

_BY_TOKEN = ("embedding.word_embeddings.weight", "output_layer.weight", "output_layer.bias")
"""Parameters of megatron-core's language models with an entry for each token."""


class PaddedVocabulary(torch.nn.Module):
    """Tokens, and what pads them to a number that all ranks can share.

    Entries of padding are zero and stay so: no token looks them up, and their logits have neither a
    share in the loss nor a gradient.
    """

    def __init__(self, size: int, padded: int, group: dist.ProcessGroup) -> None:
        """Without parameters.

        Args:
            size: tokens; entries behind them are padding.
            padded: entries, on all ranks together.
            group: the tensor-parallel ranks, in the order of their parts.
        """
        super().__init__()
        self.size, self.padded, self.group = size, padded, group
        self.softmax = softmax_
        """What turns rows of logits into their softmax, in place."""

    @property
    def here(self) -> int:
        """Tokens of this rank's part, which padding may follow."""
        part = self.padded // self.group.size()
        return max(0, min(self.size - self.group.rank() * part, part))

    def clear_padding(self, model: torch.nn.Module) -> None:
        """Set what a language model has of padding to zero."""
        for name, parameter in model.named_parameters():
            if name in _BY_TOKEN:
                parameter.data[self.here :] = 0.0

    def without_padding(self, logits: torch.Tensor) -> torch.Tensor:
        """Those of this rank's tokens alone, of (..., entries of this rank)."""
        return logits[..., : self.here]

    def losses(
        self, logits: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :func:`.cross_entropy.vocab_parallel_cross_entropy`, which overwrites ``logits``."""
        return vocab_parallel_cross_entropy(logits, labels, self.group, self.size, self.softmax)
