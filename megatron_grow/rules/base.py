"""What every rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.inputs.ranges import check_fields


@dataclass(frozen=True)
class Observation:
    """What a rule sees of the steps since the observation before."""

    step: int
    """Global steps done."""
    tokens: int
    """Training tokens that the run has consumed."""
    flops: int
    """Cost of the whole run so far, embedding and head included
    (:func:`~megatron_grow.cost.flops.flops_at_step`)."""
    loss: float
    """Mean training loss over those steps or, where ``until`` asks for it, the validation loss
    after them; the same on every rank."""


@dataclass(frozen=True)
class Rule(ABC):
    """Decides when a stage ends, by what has been observed in it.

    A rule's dataclass fields are its options in a run file, beside those of every rule
    (:class:`~megatron_grow.config.until.UntilSection`); its docstring says where it was published.
    It decides by the history alone, so that a resumed run decides as one that was never stopped;
    what it needs to know of the run itself, and what it reads, it looks at when it is made.
    """

    run: RunConfig = field(kw_only=True, repr=False)
    """Given to every rule: the run, with its vocabulary."""
    stage: Stage = field(kw_only=True, repr=False)
    """Given to every rule: the stage that it may end."""

    def __post_init__(self) -> None:
        check_fields(self)

    @abstractmethod
    def ends(self, history: Sequence[Observation]) -> str | None:
        """Whether the stage ends now; rank 0 alone is asked.

        Args:
            history: of this stage, oldest first; never empty.

        Returns:
            Why it ends, in a few words with the value that decided; None: it goes on.
        """
