"""What every growth operator is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.ranges import check_fields
from megatron_grow.state.axes import AxisRule
from megatron_grow.state.axis_map import AxisMap
from megatron_grow.state.questions import Answers, Question
from megatron_grow.state.tensors import LogicalTensor

NewUnits = dict[str, tuple[bool, ...]]
"""By axis, a flag for each unit."""

Sizes = Mapping[AxisRule, tuple[int, int]]
"""Size before and after of axes whose size changes."""

Draw = dict[str, AxisMap]
"""How a tensor's axes are drawn, by name; an axis that is absent stays as it is."""


@dataclass(frozen=True, kw_only=True)
class Operator(ABC):
    """Grows some axes of every tensor that has them.

    An operator's dataclass fields are its options in a run file; its docstring says what it does,
    whether it preserves the function, and where it was published. It never sees a rank, a shard or
    a file.
    """

    key: str
    """The key of ``grow`` under which a run file names it; these five are no options."""
    name: str
    """What the run file calls it."""
    sizes: Sizes
    """Of the axes that this key grows."""
    post_norm: bool
    """Whether layers of the target normalise the residual stream itself."""
    answers: Answers
    """To :meth:`questions`; all ones while a plan is made for its sizes alone. What is fresh must
    not depend on them."""
    keys: ClassVar[tuple[str, ...]]
    """Those under which it can be named."""
    can_fade_in: ClassVar[bool] = False
    """Whether masking its new units at first (``grow.mask_iters``) preserves the function."""

    def __post_init__(self) -> None:
        check_fields(self)

    def axes(self, source: ModelConfig, target: ModelConfig) -> set[str]:
        """Names of the axes that it grows: those of its key, unless it says otherwise."""
        return {rule.name for rule in self.sizes}

    def check(self, source: ModelConfig, target: ModelConfig, where: str) -> None:
        """Raise :class:`UserError`, beginning with ``where``, if the growth is impossible."""
        return None

    def questions(
        self, tensors: Mapping[str, LogicalTensor], source: ModelConfig, target: ModelConfig
    ) -> Iterable[Question]:
        """What it must know of the source's weights: of some of its ``tensors``, by key."""
        return ()

    @abstractmethod
    def weights(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """How ``tensor``, of the target, is made: a sum of draws, mostly of one."""

    def gradients(
        self, tensor: LogicalTensor, source: ModelConfig, target: ModelConfig
    ) -> list[Draw]:
        """How its gradient, and so a carried moment, follows from the source's; fresh is zero."""
        return self.weights(tensor, source, target)

    def new_units(self, source: ModelConfig, target: ModelConfig) -> NewUnits:
        """Along each axis, which of the target's units are new."""
        return {}

    def loses(self, source: ModelConfig, target: ModelConfig) -> str | None:
        """What of the function is lost, as far as its own numbers show; None if they do not."""
        return None

    @abstractmethod
    def caveat(self, source: ModelConfig, target: ModelConfig) -> str | None:
        """Why the function changes; None if it does not."""
