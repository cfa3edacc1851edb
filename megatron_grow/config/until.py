"""Where a stage ends: at a step, or by a rule or a method before one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from megatron_grow.config.sections import TrainSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import Count, Range, check_fields
from megatron_grow.inputs.typed import typed

Point = Annotated[int | float, Range(above=0)]
"""A fraction of train_iters (a number with a point, at most 1.0) or an integer step."""


@dataclass(frozen=True)
class UntilSection:
    """What ``until: {rule: NAME, ...}`` holds beside the options of the rule itself.

    Without a rule it is for the stage's methods to end it.
    """

    at_most: Point
    """Where the stage ends if nothing has ended it."""
    at_least: Point | None = None
    """The rule is not asked before; absent: it is asked from the start of the stage on."""
    every: Count | None = None
    """Steps: at their multiples the rule is asked; absent: train.eval_interval."""
    losses: Literal["training", "validation"] = "training"
    """What it sees each time: the mean training loss since the time before, or the validation
    loss."""
    loss_name: str = "loss"
    """Which: ``loss``, all that is trained on, or one of its parts, such as ``masked_lm_loss``."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class StageRule:
    """How a rule may end a stage, with all that it resolves to."""

    spec: dict[str, Any]
    """As a registry makes one: ``{rule: NAME, ...its options}``; empty without a rule."""
    every: int
    """Steps between the losses that it sees."""
    first_step: int = 0
    """It is not asked before."""
    validation: bool = False
    """Whether it sees validation losses; else training losses."""
    loss_name: str = "loss"
    """Which of them."""

    @property
    def name(self) -> str:
        """What may end the stage, as the run file has it."""
        return str(self.spec.get("rule", "a method"))


def step_of(point: int | float | None, train_iters: int, where: str) -> int:
    """The global step that ``point`` stands for.

    Raises:
        UserError: none, or neither a fraction nor a step; the message begins with ``where``.
    """
    if point is None:
        raise UserError(f"{where} is missing; only the last stage may leave it out")
    if isinstance(point, int):
        return point
    if point <= 1.0:
        return round(point * train_iters)
    if point.is_integer():
        return int(point)
    raise UserError(f"{where}={point} must be a fraction of at most 1.0 or an integer step")


def resolve_rule(
    until: Mapping[str, Any], train: TrainSection, begins: int, where: str
) -> tuple[int, StageRule]:
    """The last step of a stage that ends by a rule, and how the rule may end it before.

    The rule itself is not looked up.

    Args:
        until: as the run file has it.
        train: of the run.
        begins: the step after which the stage begins at the earliest.
        where: begins the message of an error, for example ``stages[0].until``.

    Raises:
        UserError: a field that is missing, of another type, or out of its range or order.
    """
    example = "as in {rule: loss_slope, at_most: 0.8}"
    if until.get("at_most") is None:
        raise UserError(
            f"{where}.at_most is missing: where the stage ends at the latest, {example}"
        )
    options = ", ".join(name for name in until if name not in ("rule", "at_most"))
    if until.get("rule") is None and options:
        raise UserError(f"{where}.rule is missing, for which {options} would be, {example}")
    names = [field.name for field in fields(UntilSection)]
    written = {name: value for name, value in until.items() if name in names}
    try:
        section = UntilSection(**typed(UntilSection, written, where))
    except UserError as error:
        raise UserError(f"{where}.{str(error).removeprefix(f'{where}.')}") from None
    last_step = step_of(section.at_most, train.train_iters, f"{where}.at_most")
    if until.get("rule") is None:
        return last_step, StageRule({}, train.eval_interval)
    first_step, every = 0, section.every or train.eval_interval
    if section.at_least is not None:
        first_step = step_of(section.at_least, train.train_iters, f"{where}.at_least")
    if not first_step < last_step:
        raise UserError(
            f"{where}.at_least={section.at_least} is step {first_step}; it must lie before "
            f"at_most={section.at_most}, step {last_step}"
        )
    earliest = max(first_step, begins + 1)
    if (last_step - 1) // every * every < earliest:
        raise UserError(
            f"{where}.every={every}: the rule is never asked; a multiple of it must lie between "
            f"step {earliest} and at_most={section.at_most}, step {last_step}"
        )
    validation = section.losses == "validation"
    if validation and not train.eval_iters:
        raise UserError(
            f"{where}.losses=validation needs evaluations; train.eval_iters=0 makes none"
        )
    spec = {name: value for name, value in until.items() if name not in names}
    return last_step, StageRule(spec, every, first_step, validation, section.loss_name)
