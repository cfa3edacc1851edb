"""What every parametrization says."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import check_fields
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.optim.base import Optimizer
from megatron_grow.optim.multipliers import Multipliers
from megatron_grow.state.tensors import Init, LogicalTensor


@dataclass(frozen=True, kw_only=True)
class Parametrization(ABC):
    """What changes with the sizes of a model, so that hyper-parameters need not.

    Its fields are its options, but for the two models. The run file's rates, decay and init are
    those of a base model; a rule says what becomes of them in the run's target, tensor by tensor.
    All stages have the target's, so nothing jumps at a growth.
    """

    needs_base: ClassVar[bool] = False
    """Whether nothing would scale without ``parametrization.base``."""

    base: ModelConfig
    """The shape for which hyper-parameters are known; these two are no options."""
    target: ModelConfig
    """The shape that the run ends with."""

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self) -> None:
        """Refuse a base model that it can make nothing of.

        Raises:
            UserError: the field, and what would do.
        """
        lacks = sorted(self.target_tensors.keys() - self.base_tensors.keys())
        if lacks:
            raise UserError(
                f"parametrization.base={self.base_fields} has no tensor {lacks[0]}, which the "
                "target has; a base model differs from it in sizes alone"
            )

    def factors(self, model: ModelConfig) -> dict[str, float]:
        """The multipliers of a model that leaves them to this rule, by field of ``model``."""
        return {}

    def init(self, tensor: LogicalTensor, model: ModelConfig) -> Init:
        """How fresh entries of a tensor are made.

        Args:
            tensor: of a stage, or of the target, as its architecture has it.
            model: whose it is, with all multipliers.
        """
        return tensor.init

    def multipliers(self, tensor: LogicalTensor, rule: Optimizer) -> Multipliers:
        """Multiples of rate, decay and epsilon, in all stages.

        Args:
            tensor: of a stage.
            rule: that it is under.
        """
        return Multipliers()

    def completed(self, model: ModelConfig, of: ModelConfig | None = None) -> ModelConfig:
        """``model`` with the multipliers that it leaves to this rule: its own, or those ``of``
        another shape."""
        said = self.factors(of or model).items()
        absent: dict[str, Any] = {name: v for name, v in said if getattr(model, name) is None}
        return replace(model, **absent)

    def tensors(
        self, model: ModelConfig, target_depth: int | None = None
    ) -> dict[str, LogicalTensor]:
        """All tensors of ``model``, as :func:`.logical_tensors`, with the init of this rule."""
        return {
            key: replace(tensor, init=self.init(tensor, model))
            for key, tensor in logical_tensors(model, target_depth).items()
        }

    @property
    def base_fields(self) -> dict[str, object]:
        """In what the base differs from the target, by field, for messages."""
        multipliers = self.target.plain_multipliers
        return {
            name: is_
            for field in fields(self.base)
            if (name := field.name) not in multipliers
            and (is_ := getattr(self.base, name)) != getattr(self.target, name)
        }

    @cached_property
    def base_tensors(self) -> dict[str, LogicalTensor]:
        """Those of the base model, by key."""
        return logical_tensors(self.base)

    @cached_property
    def target_tensors(self) -> dict[str, LogicalTensor]:
        """Those of the target, by key."""
        return logical_tensors(self.target)


@dataclass(frozen=True, kw_only=True)
class Standard(Parametrization):
    """Everything is as the run file says, whatever the sizes."""

    def check(self) -> None:
        """Refuse a base model."""
        if self.base_fields:
            raise UserError(
                f"parametrization.base={self.base_fields} has no effect under "
                "parametrization.name=standard; leave it out, or name a rule"
            )
