"""The operator ``hypercloning``."""

from dataclasses import dataclass
from typing import ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.operators.expansion import Expansion, cyclic, even_shares
from megatron_grow.operators.units.base import UnitOperator
from megatron_grow.state.maps import Noise


@dataclass(frozen=True)
class HyperCloning(UnitOperator):
    """Repeat all units a whole number of times; each copy gets an equal share.

    HyperCloning (Samragh et al. 2024, arXiv 2409.12903); the feed-forward tiling of CompoundGrow
    (arXiv 2010.12562). Function-preserving. Where the paper unties the head, here a tied one stays
    tied: the last norm shares out in its place.
    """

    name: ClassVar[str] = "hypercloning"
    whole_factor: ClassVar[bool] = True

    snr_db: float | None = None
    """Signal-to-noise ratio, in dB, of noise that breaks the symmetry of copies; the paper's is 10.
    Columns of one pair of copies get it with opposite signs; absent: no noise."""

    def expand(self, axis: str, source: int, target: int, model: ModelConfig) -> Expansion:
        """0 1 -> 0 1 0 1."""
        index = cyclic(source, target)
        return Expansion(index, share=even_shares(index), noise=self._noise(source, target))

    def _noise(self, source: int, target: int) -> Noise | None:
        if self.snr_db is None:
            return None
        level = 10 ** (-self.snr_db / 20)
        copies = target // source
        # Copies 0 and 1 are a pair, 2 and 3 another; an odd one out gets none.
        pairs = [i // source // 2 * 2 for i in range(target)]
        signs = [
            0.0 if pair + 1 == copies else level if i // source == pair else -level
            for i, pair in enumerate(pairs)
        ]
        return Noise(tuple(p * source + i % source for i, p in enumerate(pairs)), tuple(signs))
