"""Where a run begins: at nothing, where it stopped, or grown out of another run's checkpoint."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_grow.checkpoint.formats import identity
from megatron_grow.checkpoint.open import open_reader, open_to_resume
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.record import GrowthEvent, Record, StageEnd
from megatron_grow.checkpoint.root import saved_steps
from megatron_grow.config.grow import check_growth
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig, to_yaml
from megatron_grow.config.stages import Stage
from megatron_grow.config.timing import can_end, ended
from megatron_grow.growth.at_load import load
from megatron_grow.growth.event import event_of
from megatron_grow.growth.plan import Plan, growth, initialisation, resharding
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import shown
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.parallel.agreement import gather, leads, place, together
from megatron_grow.parametrization.table import run_parametrization
from megatron_grow.state.piece import Piece
from megatron_grow.train.changes import check_changes, rate_jump, remembered
from megatron_grow.train.choice import Choice, advising, choose, other_formats


@dataclass
class Start:
    """A complete checkpoint, and what is made of it."""

    path: Path
    source: Reader
    plan: Plan
    """From what it holds to what the stage that begins needs."""
    stage: int
    step: int
    optimizer_step: int
    """Updates that the moments have seen."""
    growths: list[GrowthEvent]
    resumes: bool
    """Whether its training goes on; else the run begins by a growth."""
    stages: list[Stage]
    """Those of the run, with the ends that are known."""
    ends: list[StageEnd] = field(default_factory=list)
    """The ends that are known, of stages that might end before ``at_most``."""
    root: Path | None = None
    """Of this run's checkpoints, if it is one of them."""
    methods: dict[str, Any] = field(default_factory=dict)
    """What those of the stage remember, by their place in its section."""
    notes: tuple[str, ...] = ()
    """What the user should know before the run goes on."""

    def load(self, target: list[Piece]) -> None:
        """Fill live pieces with what is made of the checkpoint.

        Raises:
            UserError: it is damaged; the message says what may be taken instead.
        """
        with advising(self.path, self.root):
            load(self.plan, self.source, target)


def find_start(
    config: RunConfig, stages: list[Stage], corpora: dict[str, str] | None = None
) -> tuple[Choice, Start | None, Plan]:
    """Where the run begins, and how its first stage began or begins; every rank takes part.

    Rank 0 looks; the others open what it found, and make sure that they see the same.

    Args:
        config: the run.
        stages: what its stages resolve to.
        corpora: what it reads, as in :class:`~.record.Record`.

    Raises:
        UserError: as :func:`~.choice.choose`, a checkpoint that is damaged, of another run, or
            another one on some ranks.
    """
    grows = stages[0].grow is not None
    chosen = together(lambda: choose(config, grows=grows) if leads() else None)
    choice = gather(chosen)[0]
    assert choice is not None
    start, plan = together(lambda: _open(choice, config, stages, corpora or {}))
    _agree(choice, start, config)
    return choice, start, plan


def _open(
    choice: Choice, config: RunConfig, stages: list[Stage], corpora: dict[str, str]
) -> tuple[Start | None, Plan]:
    first = stages[0]
    if choice.path is None:
        return None, _initialisation(config, first)
    if choice.grows:
        start = _grow(open_reader(choice.path, also=other_formats(config)), config, stages)
        return start, start.plan
    start = _resume(choice, config, stages, corpora)
    if first.grow is None and config.checkpoint.initial is None:
        return start, _initialisation(config, first)
    begun = next((event for event in reversed(start.growths) if event.stage == 0), None)
    if begun is None:
        raise UserError(
            f"{choice.path} did not begin by a growth; leave out stages[0].grow and "
            "checkpoint.initial to go on from it"
        )
    return start, _first_plan(ModelConfig(**begun.source_model), config, first)


def _agree(choice: Choice, start: Start | None, config: RunConfig) -> None:
    """Raise :class:`UserError` on all ranks unless all have the same run and checkpoint."""
    seen = gather(
        (
            socket.gethostname(),
            to_yaml(config),
            start and (identity(start.path), start.step, start.stage),
        )
    )
    for rank, (host, run, found) in enumerate(seen):
        what = "run file" if run != seen[0][1] else f"checkpoint at {choice.path}"
        if (run, found) != seen[0][1:]:
            raise UserError(
                f"rank {rank} on {host} has another {what} than rank 0 on {seen[0][0]}: all ranks "
                "must read the same files"
            )


def _resume(
    choice: Choice, config: RunConfig, stages: list[Stage], corpora: dict[str, str]
) -> Start:
    path = choice.path
    assert path is not None
    root = config.checkpoint_dir if choice.own else None
    with advising(path, root):
        source = open_to_resume(path, other_formats(config))
        source.check_shards(*place())
    record = source.record
    where = f"checkpoint {path}"
    ends = [end for end in record.stage_ends if end.stage < len(stages) and stages[end.stage].rule]
    stages = _with_ends(stages, ends, where)
    _check_record(record, where, config, stages)
    notes = [*choice.notes, *check_changes(record, where, config, corpora)]
    stage = stages[record.stage]
    if jump := rate_jump(record, config, stage, saved_steps(config.checkpoint_dir)):
        notes.append(jump)
    if record.step == config.train.train_iters:
        notes.append(f"the run is finished: {path} is at train.train_iters={record.step}")
    return Start(
        path=path,
        source=source,
        plan=resharding(stage.model),
        stage=record.stage,
        step=record.step,
        optimizer_step=record.optimizer_step,
        growths=record.growths,
        resumes=True,
        stages=stages,
        ends=ends,
        root=root,
        methods=remembered(record, config),
        notes=tuple(notes),
    )


def _with_ends(stages: list[Stage], ends: list[StageEnd], where: str) -> list[Stage]:
    """``stages`` with the ends that a checkpoint has recorded."""
    for end in ends:
        if not can_end(stages, end.stage, end.step):
            stage = stages[end.stage]
            raise UserError(
                f"{where} ends stages[{end.stage}] after step {end.step}, which is no end of it "
                f"as it is now, in steps {stage.first_step} to {stage.last_step}; restore its "
                "until.at_most and the batches of the stages"
            )
        stages = ended(stages, end.stage, end.step)
    return stages


def _check_record(record: Record, where: str, config: RunConfig, stages: list[Stage]) -> None:
    """Refuse a checkpoint of another run."""
    if record.stage >= len(stages):
        raise UserError(f"{where} is of stages[{record.stage}], but the run has {len(stages)}")
    for end in record.stage_ends:
        now = stages[end.stage].last_step if end.stage < record.stage else end.step
        if now != end.step:
            raise UserError(
                f"{where} was trained with stages[{end.stage}] up to step {end.step} "
                f"({end.reason}); its until, which is step {now} now, must be that step or what it "
                "was"
            )
    stage = stages[record.stage]
    old, new = (vars(model.resolved) for model in (record.model_config, stage.model))
    if differ := [name for name in old if old[name] != new[name]]:
        what = ", ".join(f"{name}={shown(old[name])} (now {shown(new[name])})" for name in differ)
        raise UserError(
            f"{where} holds another model than stages[{record.stage}] describes: {what}; restore "
            "what it was, or begin a new stage that grows it"
        )
    if not stage.first_step <= record.step <= stage.last_step:
        raise UserError(
            f"{where} is at step {record.step} of stages[{record.stage}], which now covers steps "
            f"{stage.first_step} to {stage.last_step}; restore stages and train_iters as they were"
        )
    _check_tokens(record, where, config, stage)
    if record.precision != config.train.precision:
        raise UserError(
            f"{where} was trained in {record.precision}, train.precision={config.train.precision}"
        )


def _check_tokens(record: Record, where: str, config: RunConfig, stage: Stage) -> None:
    longest = record.config.get("train", {}).get("seq_length")
    if config.train.seq_length != longest:
        raise UserError(
            f"{where} was trained with train.seq_length={longest}, on which the order of samples "
            f"depends: train.seq_length={config.train.seq_length} must be {longest}"
        )
    if stage.tokens_at(record.step) != record.consumed_tokens:
        raise UserError(
            f"{where} consumed {record.consumed_tokens} tokens in {record.step} steps; with the "
            f"stages as they are now it would be {stage.tokens_at(record.step)}. Restore their "
            "batches; to change the batch from here on, begin a new stage"
        )


def _initialisation(config: RunConfig, stage: Stage) -> Plan:
    tensors_of = run_parametrization(config).tensors
    return initialisation(stage.model, config.model.num_layers, config.run.seed, tensors_of)


def _first_plan(source: ModelConfig, config: RunConfig, stage: Stage) -> Plan:
    where = "stages[0]"
    check_growth(source, stage.model, stage.grow, where)
    return growth(
        source,
        stage.model,
        stage.grow,
        target_depth=config.model.num_layers,
        seed=config.run.seed,
        optimizer=optimizer_of(config.optimizer),
        tensors_of=run_parametrization(config).tensors,
        where=f"{where}.grow",
    )


def _check_state(stored: Reader, where: str, plan: Plan, config: RunConfig) -> None:
    """Refuse a checkpoint without the state that the run's optimizer carries over."""
    optimizer = optimizer_of(config.optimizer)
    for tensor in plan.tensors.values():
        key = tensor.drawn_from(stored.tensors)
        for kind in optimizer.rule(tensor).states if key in stored.tensors else ():
            if kind not in stored.kinds(key):
                raise UserError(
                    f"{where} holds no {kind} of {config.optimizer.optimizer}; set "
                    "stages[0].grow.optimizer_state: reset"
                )


def _grow(stored: Reader, config: RunConfig, stages: list[Stage]) -> Start:
    record, where, stage = stored.record, f"checkpoint {stored.path}", stages[0]
    source = record.model_config
    plan = _first_plan(source, config, stage)
    if plan.optimizer_state != "reset":
        _check_state(stored, where, plan, config)
    step = 0
    if config.checkpoint.start == "continue":
        step = record.step
        if not stage.first_step <= step < stage.last_step:
            raise UserError(
                f"{where} is at step {step}; to continue there, stages[0] must cover it, not steps "
                f"{stage.first_step} to {stage.last_step}; or set checkpoint.start: afresh"
            )
        _check_tokens(record, where, config, stage)
    layout = stage.parallel.describe(place()[1])
    event = event_of(plan, stage.grow, source, step=step, target_layout=layout)
    return Start(
        path=stored.path,
        source=stored,
        plan=plan,
        stage=0,
        step=step,
        optimizer_step=0 if plan.optimizer_state == "reset" else record.optimizer_step,
        growths=[*record.growths, event] if config.checkpoint.start == "continue" else [event],
        resumes=False,
        stages=stages,
    )
