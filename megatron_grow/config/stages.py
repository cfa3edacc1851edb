"""The list of stages, and what it resolves to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from megatron_grow.config.errors import UserError
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig

Section = TypeVar("Section", ModelConfig, ParallelConfig)


@dataclass
class GrowSection:
    """How a stage begins from the one before: an operator for each axis, and a state policy."""

    depth: str | dict[str, Any] | None = None
    """Operator name, or ``{operator: NAME, ...its options}``."""
    optimizer_state: Literal["carry", "carry_old", "reset"] = "carry"
    """``carry`` maps moments as gradients; ``carry_old`` keeps those of original entries and starts
    duplicates at zero; ``reset`` starts all at zero."""


@dataclass
class StageSection:
    """One entry of ``stages``, as it is written in a run file."""

    until: int | float | None = None
    """Where the stage ends: a fraction of train_iters (a number with a point, at most 1.0) or an
    integer step; absent in the last stage."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of ``model`` that differ from the target."""
    parallel: dict[str, Any] = field(default_factory=dict)
    """Fields of ``parallel`` that differ from the run's."""
    grow: GrowSection | None = None
    """How this stage grows out of the one before; required in every stage but the first."""
    lr_multiplier: float = 1.0
    """Factor on the learning rate of this stage."""
    rewarmup_iters: int = 0
    """Steps over which the learning rate rises again from 0 at the start of this stage."""


@dataclass(frozen=True)
class Stage:
    """A resolved stage: a model shape, a layout and a range of global steps."""

    index: int
    first_step: int
    """Steps done before the stage begins."""
    last_step: int
    """Global step after which the stage ends."""
    model: ModelConfig
    parallel: ParallelConfig
    grow: GrowSection | None
    lr_multiplier: float = 1.0
    rewarmup_iters: int = 0


def override(section: Section, values: dict[str, Any], where: str) -> Section:
    """``section`` with some fields replaced.

    Raises:
        UserError: an unknown name or a value of another type; the message begins with ``where``.
    """
    known = {f.name for f in fields(section)}
    for name in values:
        if name not in known:
            raise UserError(f"{where}.{name} is not a field; known are {', '.join(sorted(known))}")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(type(section), as_group=False)
    try:
        checked = parser.parse_object({**asdict(section), **values})
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(f"{where}: {' '.join(str(error).split())}") from None
    return type(section)(**vars(checked))


def resolve_stages(
    sections: list[StageSection],
    target: ModelConfig,
    parallel: ParallelConfig,
    train_iters: int,
) -> list[Stage]:
    """Turn the list as written into steps, shapes and layouts.

    An empty list is a run of the target from start to end.

    Raises:
        UserError: a list out of order, an unknown field, a shape that shrinks, a stage that does
            not say how it grows.
    """
    sections = sections or [StageSection()]
    stages: list[Stage] = []
    for index, section in enumerate(sections):
        where = f"stages[{index}]"
        last = index == len(sections) - 1
        first_step = stages[-1].last_step if stages else 0
        last_step = train_iters if last else _step(section.until, train_iters, where)
        if (
            last
            and section.until is not None
            and _step(section.until, train_iters, where) != train_iters
        ):
            raise UserError(
                f"{where}.until={section.until}: the last stage ends at "
                f"train_iters={train_iters}; leave it out"
            )
        if not first_step < last_step <= train_iters:
            raise UserError(
                f"{where}.until={section.until} is step {last_step}; it must lie after step "
                f"{first_step}, where the stage begins, and not after train_iters={train_iters}"
            )
        model = override(target, section.model, f"{where}.model")
        if last and model != target:
            raise UserError(
                f"{where}.model={section.model} differs from model; the last stage is the target, "
                "leave it out"
            )
        stage = Stage(
            index=index,
            first_step=first_step,
            last_step=last_step,
            model=model,
            parallel=override(parallel, section.parallel, f"{where}.parallel"),
            grow=section.grow,
            lr_multiplier=section.lr_multiplier,
            rewarmup_iters=section.rewarmup_iters,
        )
        if stages:
            _check_growth(stages[-1].model, stage, where)
        elif section.grow is not None:
            raise UserError(f"{where}.grow: the first stage has nothing to grow from; leave it out")
        stages.append(stage)
    return stages


def _step(until: int | float | None, train_iters: int, where: str) -> int:
    if until is None:
        raise UserError(f"{where}.until is missing; only the last stage may leave it out")
    if isinstance(until, int):
        return until
    if until <= 1.0:
        return round(until * train_iters)
    if until.is_integer():
        return int(until)
    raise UserError(f"{where}.until={until} must be a fraction of at most 1.0 or an integer step")


def _check_growth(before: ModelConfig, stage: Stage, where: str) -> None:
    after = stage.model
    if after.num_layers < before.num_layers:
        raise UserError(
            f"{where}.model.num_layers={after.num_layers} is less than the {before.num_layers} "
            "of the stage before; a run only grows"
        )
    differing = [
        f.name
        for f in fields(ModelConfig)
        if f.name != "num_layers" and getattr(before, f.name) != getattr(after, f.name)
    ]
    if differing:
        raise UserError(
            f"{where}.model: {', '.join(differing)} differ(s) from the stage before; "
            "only num_layers can grow in this version"
        )
    if after.num_layers > before.num_layers and (stage.grow is None or stage.grow.depth is None):
        raise UserError(
            f"{where}.grow.depth is missing: say how {before.num_layers} layers become "
            f"{after.num_layers}, for example grow: {{depth: random}}"
        )
    if after.num_layers == before.num_layers and stage.grow is not None and stage.grow.depth:
        raise UserError(
            f"{where}.grow.depth={stage.grow.depth} has nothing to do: the stage before has "
            f"{before.num_layers} layers too; raise model.num_layers or leave grow.depth out"
        )
