"""Samples cut into shorter sequences, so that stages of any length read one stream of tokens."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset


class Subsequences(Dataset):
    """Every sample of a dataset in consecutive parts: part k is part ``k % cuts`` of ``k // cuts``.

    A label is the token after its own, and the last token of a sample's text is a label only. So
    parts in order predict exactly the tokens of their samples in order, each once.

    Args:
        dataset: Samples by global number: ``tokens``, ``labels``, ``position_ids`` and
            ``loss_mask``, (length,) each.
        cuts: Parts of one sample; it divides the length.
    """

    def __init__(self, dataset: Dataset, cuts: int) -> None:
        self._dataset, self._cuts = dataset, cuts
        self._last: tuple[int, dict[str, torch.Tensor]] | None = None

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Part number ``index``, any from 0.

        Returns:
            The fields of a sample, (length / cuts,) each; positions count from the part's start.
        """
        number, part = divmod(index, self._cuts)
        if self._last is None or self._last[0] != number:  # neighbours are read one after another
            self._last = number, self._dataset[number]
        sample = self._last[1]
        length = len(sample["tokens"]) // self._cuts
        fields = ("tokens", "labels", "loss_mask")
        cut = {name: sample[name][part * length : (part + 1) * length] for name in fields}
        return cut | {"position_ids": sample["position_ids"][:length]}
