"""Numbers without end, each of one of finitely many samples."""

from __future__ import annotations

import numpy as np


class Epochs:
    """An order of samples for every epoch, which the seed and its number decide.

    Args:
        size: Samples of an epoch.
        seed: Of the orders.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self._seed = size, seed
        self._epoch = 0
        self._permutation: np.ndarray | None = None

    def sample(self, number: int) -> int:
        """Which sample number ``number`` is, any from 0; in epoch 0 that of the same number."""
        epoch, position = divmod(int(number), self.size)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, self._permute(epoch)
        return position if self._permutation is None else int(self._permutation[position])

    def _permute(self, epoch: int) -> np.ndarray | None:
        """The order of ``epoch``, (size,) uint32; None for that of the index."""
        if epoch == 0:
            return None
        order = np.arange(self.size, dtype=np.uint32)
        # RandomState, as in Megatron: numpy promises that its stream never changes.
        np.random.RandomState([self._seed, epoch]).shuffle(order)
        return order
