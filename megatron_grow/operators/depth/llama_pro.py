"""The operator ``llama_pro``."""

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators.depth.copying_zero import CopyingZero


class LlamaPro(CopyingZero):
    """``copying_zero`` with the published spacing alone: one copy after every n layers.

    LLaMA-Pro (Wu et al. 2024, arXiv 2401.02415). Function-preserving, exactly.
    """

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """As many new layers as divide the source's."""
        super().check(source, target, where)
        before, new = source.num_layers, target.num_layers - source.num_layers
        if before % new:
            possible = [before + n for n in range(1, before + 1) if before % n == 0]
            raise UserError(
                f"{where}: llama_pro inserts one layer after every n; {new} new layers do not "
                f"divide the source's {before}; num_layers of {', '.join(map(str, possible))} "
                "would be possible, or copying_zero"
            )
