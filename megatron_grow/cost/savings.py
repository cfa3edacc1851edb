"""What growth saves against training the full size from the start."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_grow.config.model import ModelConfig
from megatron_grow.cost.flops import Definition, flops_per_token


def flops_ratio(stages: Sequence[tuple[float, ModelConfig]], part: Definition) -> float:
    """Cost of a progressive run over that of its last shape for as many steps.

    0.2 means that 80 % is saved. With one growth at ``tau`` of ``T`` steps from ``N_s`` to ``N_L``
    parameters it is ``(tau N_s + (T - tau) N_L) / (T N_L)`` (Bu 2025).

    Args:
        stages: (tokens, shape) in order, in any unit; steps, or shares of the run, where all steps
            read as many tokens.
        part: which parameters cost.
    """
    steps = sum(length for length, _ in stages)
    grown = sum(length * flops_per_token(model, part) for length, model in stages)
    return grown / (steps * flops_per_token(stages[-1][1], part))
