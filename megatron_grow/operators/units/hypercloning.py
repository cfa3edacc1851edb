"""The operator ``hypercloning``."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.expansion import Expansion, gets_noise
from megatron_grow.operators.indices import cyclic, even_shares
from megatron_grow.operators.units.base import UnitOperator
from megatron_grow.state.axis_map import Noise
from megatron_grow.state.questions import Question
from megatron_grow.state.tensors import LogicalTensor


@dataclass(frozen=True)
class HyperCloning(UnitOperator):
    """Repeat all units a whole number of times; each copy gets an equal share.

    HyperCloning (Samragh et al. 2024, arXiv 2409.12903); the feed-forward tiling of CompoundGrow
    (arXiv 2010.12562). Function-preserving. Where the paper unties the head, here a tied one stays
    tied: the last norm shares out in its place.
    """

    whole_factor: ClassVar[bool] = True

    snr_db: float | None = None
    """Signal-to-noise ratio, in dB, of Gaussian noise that breaks the symmetry of copies: the power
    of a layer's matrix over that of what is added to it; the paper's is 10. Of a pair of copies one
    gets it and the other its negative, so that the function stays; absent: no noise."""

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """Besides: a ratio is a number."""
        super().check(source, target, where)
        if self.snr_db is not None and not isfinite(self.snr_db):
            raise UserError(f"{where}.snr_db={self.snr_db} must be a finite number")

    def questions(
        self, tensors: Mapping[str, LogicalTensor], source: ModelConfig, target: ModelConfig
    ) -> Iterator[Question]:
        """The power of each layer of what gets noise."""
        grown = self.sizes if self.snr_db is not None else ()
        for tensor in tensors.values():
            if any(axis.rule in grown and gets_noise(tensor, axis) for axis in tensor.axes):
                yield Question(tensor)

    def expand(self, axis: str, source: int, target: int, model: ModelConfig) -> Expansion:
        """0 1 -> 0 1 0 1."""
        index = cyclic(source, target)
        return Expansion(index, share=even_shares(index), noise=self._noise(source, target))

    def _noise(self, source: int, target: int) -> Noise | None:
        if self.snr_db is None:
            return None
        # Copies 0 and 1 of a unit are a pair, 2 and 3 another; an odd one out gets none.
        pairs = tuple(i // source // 2 * source + i % source for i in range(target))
        rms = {asked.tensor.key: tuple(found.tolist()) for asked, found in self.answers.items()}
        # Two values less their mean have half the power.
        return Noise(pairs, level=sqrt(2) * 10 ** (-self.snr_db / 20), rms=rms)
