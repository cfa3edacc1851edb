"""The list of stages, and what it resolves to."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from math import gcd
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from megatron_grow.config.batch import BatchShape
from megatron_grow.config.grow import GrowSection, check_growth
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.release import ReleaseSection
from megatron_grow.config.sections import TrainSection
from megatron_grow.config.until import StageRule, resolve_rule, step_of
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import CountOrZero, NotNegative, Positive, Range, check_fields
from megatron_grow.inputs.typed import typed

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass
class StageSection:
    """One entry of ``stages``, as it is written in a run file."""

    until: Annotated[int | float | dict[str, Any], Range(above=0)] | None = None
    """Where the stage ends: a fraction of train_iters (a number with a point, at most 1.0) or an
    integer step; or ``{rule: NAME, ...its options, at_most: ...}``, a rule that may end it before
    (:class:`~.until.UntilSection`), as may a method where there is no rule. Absent in the last
    stage."""
    model: dict[str, Any] = field(default_factory=dict)
    """Fields of ``model`` that differ from the target."""
    parallel: dict[str, Any] = field(default_factory=dict)
    """Fields of ``parallel`` that differ from the run's."""
    train: dict[str, Any] = field(default_factory=dict)
    """``seq_length``, ``global_batch_size`` and ``micro_batch_size`` where they differ from the
    run's; ``seq_length`` divides the run's, of whose sequences it takes the parts in order."""
    grow: GrowSection | None = None
    """How this stage grows out of the one before; required in every stage but the first."""
    methods: list[str | dict[str, Any]] = field(default_factory=list)
    """What acts while the stage trains: names or ``{name: NAME, ...its options}``."""
    release: ReleaseSection | None = None
    """What the stage leaves behind, finished, when it ends; absent: nothing."""
    lr: Positive | None = None
    """Peak learning rate of this stage; absent: optimizer.lr. Other peaks (muon_lr, those of
    multipliers) move in proportion; where the decay ends does not."""
    lr_multiplier: NotNegative = 1.0
    """Factor on the learning rate of this stage, where the decay ends included."""
    rewarmup_iters: CountOrZero = 0
    """Steps over which the learning rate rises again from 0 at the start of this stage."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Stage:
    """A resolved stage: a model shape, a layout, a batch and a range of global steps."""

    index: int
    first_step: int
    """Steps done before the stage begins."""
    last_step: int
    """Global step after which the stage ends; at the latest, where ``rule`` may end it before."""
    model: ModelConfig
    parallel: ParallelConfig
    grow: GrowSection | None
    batch: BatchShape
    first_token: int = 0
    """Training tokens consumed before the stage begins; a multiple of its ``seq_length``."""
    eval_iters: int = 0
    """Global batches of this stage in one evaluation: in every stage the same tokens."""
    lr: float | None = None
    """Its peak learning rate; None: the optimizer's."""
    lr_multiplier: float = 1.0
    rewarmup_iters: int = 0
    rule: StageRule | None = None
    """What may end the stage before its last step; None: nothing, or it is known where it ends."""
    release: ReleaseSection | None = None
    """What it leaves behind, with its name."""
    methods: dict[str, str | dict[str, Any]] = field(default_factory=dict)
    """As the run file has them, by the place in the stage's section that asks for each."""
    aligned_layers: bool = False
    """Whether a data-parallel rank updates the same part of every layer, as it does anyway of
    layers that share their parameters; methods may ask for it."""

    def tokens_at(self, step: int) -> int:
        """Training tokens that the run has consumed after ``step``, a step of this stage."""
        return self.first_token + (step - self.first_step) * self.batch.tokens


Section = TypeVar("Section", bound="DataclassInstance")


def override(section: Section, values: Any, where: str) -> Section:
    """``section`` with some fields replaced.

    Raises:
        UserError: an unknown name or a value of another type; the message begins with ``where``.
    """
    known = {f.name for f in fields(section)}
    if not isinstance(values, dict):
        raise UserError(f"{where}={values!r} must be fields and their values; {_names(known)}")
    for name in values:
        if name not in known:
            raise UserError(f"{where}.{name} is not a field; {_names(known)}")
    checked = typed(type(section), {**asdict(section), **values}, where)
    try:
        return type(section)(**checked)
    except UserError as error:
        # A section begins its messages with its own name, with which `where` ends.
        message = str(error).removeprefix(where.rpartition(".")[2] + ".")
        joint = "." if message.partition("=")[0] in known else ": "
        raise UserError(f"{where}{joint}{message}") from None


def changed_model(model: ModelConfig, values: Any, where: str) -> ModelConfig:
    """As :func:`override`, option by option; key/value groups follow the heads of which they were
    as many.

    An imported model names both; to change the heads alone must not make grouped queries of it.
    """
    multi_head = model.query_groups == model.num_attention_heads
    if isinstance(values, dict) and "num_attention_heads" in values and multi_head:
        values = {"num_query_groups": None, **values}
    if isinstance(values, dict) and isinstance(options := values.get("options"), dict):
        values = {**values, "options": {**model.options, **options}}
    return override(model, values, where)


def _names(known: set[str]) -> str:
    return f"known are {', '.join(sorted(known))}"


def stage_section(values: Any, where: str) -> StageSection:
    """One entry of ``stages``, as a run file has it.

    Raises:
        UserError: an unknown name or a value of another type; the message begins with ``where``.
    """
    if not isinstance(values, dict):
        return override(StageSection(), values, where)
    written = {name: values[name] for name in _NESTED if values.get(name) is not None}
    section = override(StageSection(), {**values, **dict.fromkeys(written)}, where)
    for name, nested in written.items():
        setattr(section, name, override(_NESTED[name](), nested, f"{where}.{name}"))
    return section


_NESTED: dict[str, Any] = {"grow": GrowSection, "release": ReleaseSection}
"""Fields of a stage that have fields themselves."""


def resolve_stages(
    sections: list[StageSection],
    target: ModelConfig,
    parallel: ParallelConfig,
    train: TrainSection,
    *,
    grows_at_load: bool = False,
) -> list[Stage]:
    """Turn the list as written into steps, shapes, layouts and batches.

    An empty list is a run of the target from start to end.

    Raises:
        UserError: a list out of order, an unknown field, a shape that shrinks, a stage that does
            not say how it grows, a batch that does not fit the stream of tokens.
    """
    sections, train_iters = sections or [StageSection()], train.train_iters
    stages: list[Stage] = []
    for index, section in enumerate(sections):
        where = f"stages[{index}]"
        last = index == len(sections) - 1
        first_step = stages[-1].last_step if stages else 0
        earliest = max((stage.last_step for stage in stages if not stage.rule), default=0)
        last_step, rule = _end(section, train, earliest, f"{where}.until", last=last)
        if not first_step < last_step <= train_iters:
            begins = "where the stage begins"
            if stages and stages[-1].rule:
                begins = f"where stages[{index - 1}] ends at the latest"
            raise UserError(
                f"{_shown(section, where)} is step {last_step}; it must lie after step "
                f"{first_step}, {begins}, and not after train_iters={train_iters}"
            )
        model = changed_model(target, section.model, f"{where}.model")
        if last and model != target:
            raise UserError(
                f"{where}.model={section.model} differs from model; the last stage is the target, "
                "leave it out"
            )
        batch = override(train.batch, section.train, f"{where}.train")
        stage = Stage(
            index=index,
            first_step=first_step,
            last_step=last_step,
            model=model,
            parallel=override(parallel, section.parallel, f"{where}.parallel"),
            grow=section.grow,
            batch=batch,
            first_token=stages[-1].tokens_at(first_step) if stages else 0,
            eval_iters=train.eval_iters * train.batch.tokens // batch.tokens,
            lr=section.lr,
            lr_multiplier=section.lr_multiplier,
            rewarmup_iters=section.rewarmup_iters,
            rule=rule,
            release=_named(section.release, index),
            methods=methods_by_place(section),
        )
        _check_batch(stage, stages[-1] if stages else None, train, where)
        if stages:
            check_growth(stages[-1].model, stage.model, stage.grow, where)
        elif section.grow is not None and not grows_at_load:
            raise UserError(
                f"{where}.grow: the first stage has nothing to grow from; leave it out, or name a "
                "checkpoint in checkpoint.initial or checkpoint.load"
            )
        stages.append(stage)
    return stages


def _named(release: ReleaseSection | None, index: int) -> ReleaseSection | None:
    return release and replace(release, name=release.name or f"stage_{index}")


def _end(
    section: StageSection, train: TrainSection, begins: int, where: str, *, last: bool
) -> tuple[int, StageRule | None]:
    """The last step of a stage that ``begins`` there or later, and what may end it before."""
    until, train_iters = section.until, train.train_iters
    if last and until is None:
        return train_iters, None
    if isinstance(until, dict):
        last_step, rule = resolve_rule(until, train, begins, where)
        if not rule.spec and not section.methods:
            raise UserError(
                f"{where}.rule is missing, and no method of the stage could end it before at_most: "
                "name a rule, as in {rule: loss_slope, at_most: 0.8}"
            )
    else:
        last_step, rule = step_of(until, train_iters, where), None
    if last and (rule or last_step != train_iters):
        raise UserError(
            f"{where}={until}: the last stage ends at train_iters={train_iters}; leave it out"
        )
    return last_step, rule


def _shown(section: StageSection, where: str) -> str:
    """Where a stage ends at the latest, as the run file has it."""
    if section.until is None:
        return f"the end of {where}"
    if isinstance(section.until, dict):
        return f"{where}.until.at_most={section.until['at_most']}"
    return f"{where}.until={section.until}"


def methods_by_place(section: StageSection) -> dict[str, str | dict[str, Any]]:
    """What a stage asks for, by the place in its section that does."""
    found = {f"methods[{number}]": method for number, method in enumerate(section.methods)}
    if section.grow is not None and section.grow.mask_iters:
        found["grow.mask_iters"] = {"name": "fade_in", "iters": section.grow.mask_iters}
    return found


def _check_batch(stage: Stage, before: Stage | None, train: TrainSection, where: str) -> None:
    batch, length = stage.batch, stage.batch.seq_length
    if train.seq_length % length:
        raise UserError(
            f"{where}.train.seq_length={length} does not divide train.seq_length="
            f"{train.seq_length}, the longest of the run, of which every stage reads parts"
        )
    if before is not None and stage.first_token % length:
        field_ = "until.at_most" if before.rule else "until"
        until = f"stages[{before.index}].{field_}={before.last_step}"
        steps = " or ".join(map(str, _steps_between_sequences(before, stage)))
        advice = f"could be {steps}" if steps else "has no better value: change a batch before it"
        raise UserError(
            f"{where} would begin after {stage.first_token} tokens, which are no multiple of its "
            f"seq_length={length}; {until} {advice}"
        )
    if stage.eval_iters * batch.tokens != train.eval_iters * train.batch.tokens:
        multiple = batch.tokens // gcd(batch.tokens, train.batch.tokens)
        raise UserError(
            f"{where}: an evaluation of train.eval_iters={train.eval_iters} batches of "
            f"{train.batch.describe()} tokens is not a whole number of this stage's batches of "
            f"{batch.describe()}; make train.eval_iters a multiple of {multiple}"
        )


def _steps_between_sequences(before: Stage, stage: Stage) -> list[int]:
    """The last step before and the first after its end where ``before`` could hand over."""
    far = 100_000  # enough for any batch that somebody would choose
    earlier = range(before.last_step - 1, before.first_step, -1)[:far]
    later = range(before.last_step + 1, stage.last_step)[:far]
    nearest = [
        next((step for step in steps if before.tokens_at(step) % stage.batch.seq_length == 0), None)
        for steps in (earlier, later)
    ]
    return [step for step in nearest if step is not None]
