"""A stage that ends after as many tokens as a published law says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log10

from megatron_grow.cost.parameters import count_parameters
from megatron_grow.inputs.errors import UserError
from megatron_grow.rules.base import Observation, Rule


def growth_tokens(parameters: float, compute: float) -> float:
    """Tokens after which G_stack grows a model (Du et al. 2024, arXiv 2405.15319).

    Args:
        parameters: of the target.
        compute: FLOPs of its training, 6 for each parameter and token.
    """
    return float(10 ** (0.88 * log10(parameters) + 163.27 / log10(compute) - 5.74))


@dataclass(frozen=True)
class GStack(Rule):
    """End the stage after the tokens of G_stack's law (Du et al. 2024, arXiv 2405.15319).

    ``log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74``, with N the target's parameters and C the
    compute of a fixed-size run of as many tokens as this run has. The law was fitted for stacking
    two to four times, with a fresh optimizer (``recipe: g_stack``), on models of hundreds of
    millions of parameters and more; small models get more tokens of it than they are trained on.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens >= self._trained_on:
            raise UserError(
                f"rule=g_stack grows a model of {count_parameters(self.run.model):,} parameters "
                f"after {self.tokens:.4g} tokens, and the run has {self._trained_on:.4g}; the law "
                "is one for large models"
            )

    @property
    def _trained_on(self) -> int:
        return self.run.train.train_iters * self.run.train.batch.tokens

    @cached_property
    def tokens(self) -> float:
        """After which the stage ends."""
        parameters = count_parameters(self.run.model)
        return growth_tokens(parameters, 6 * parameters * self._trained_on)

    def ends(self, history: Sequence[Observation]) -> str | None:
        """As :meth:`.Rule.ends`."""
        seen = history[-1].tokens
        return f"{seen:.4g} tokens, of {self.tokens:.4g}" if seen >= self.tokens else None
