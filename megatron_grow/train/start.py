"""Where a run begins: at nothing, where it stopped, or grown out of another run's checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_grow.checkpoint.huggingface.files import CONFIG
from megatron_grow.checkpoint.layout import COMPLETE, latest, locate
from megatron_grow.checkpoint.open import open_source
from megatron_grow.checkpoint.record import GrowthEvent, Record, read_record
from megatron_grow.checkpoint.source import Source
from megatron_grow.checkpoint.torch_dist.source import TorchDistSource
from megatron_grow.config.errors import UserError
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage, check_growth
from megatron_grow.growth.plan import Plan, growth, initialisation, resharding
from megatron_grow.optim.moments import moments


@dataclass
class Start:
    """A complete checkpoint, and what is made of it."""

    path: Path
    source: Source
    plan: Plan
    """From what it holds to what the stage that begins needs."""
    stage: int
    step: int
    optimizer_step: int
    """Updates that the moments have seen."""
    growths: list[GrowthEvent]
    resumes: bool
    """Whether it is this run's own; else the run begins by a growth."""


def find_start(config: RunConfig, stages: list[Stage]) -> tuple[Start | None, Plan]:
    """Where the run begins, and how its first stage began or begins.

    A run that grows out of another's checkpoint goes on with its own, once it has one.

    Raises:
        UserError: nothing usable where ``checkpoint.load`` points.
    """
    load, first = config.checkpoint.load, stages[0]
    own = latest(config.checkpoint_dir) if load == "auto" or first.grow else None
    other = Path(load) if load not in (None, "auto") else None
    if first.grow is None:
        fresh = initialisation(first.model, config.model.num_layers, config.run.seed)
        path = _trained(other) if other else own
        return (_resume(path, config, stages) if path else None), fresh
    if own is not None:
        start = _resume(own, config, stages)
        if not start.growths or start.growths[0].stage != 0:
            raise UserError(f"{own} did not begin by stages[0].grow; leave it out to go on from it")
        return start, _first_plan(ModelConfig(**start.growths[0].source_model), config, first)
    if other is None:
        raise UserError(
            "stages[0].grow has nothing to grow from: checkpoint.load must name a checkpoint"
        )
    start = _grow(open_source(other, "checkpoint.load="), config, first)
    return start, start.plan


def _trained(path: Path) -> Path:
    """The checkpoint that ``checkpoint.load`` names, with all that training goes on from."""
    found = path if (path / CONFIG).exists() else locate(path, "checkpoint.load=")
    if not (found / COMPLETE).exists():
        raise UserError(
            f"checkpoint.load={path} holds weights alone; to begin with them, give the run "
            "stages: [{grow: {optimizer_state: reset}}]"
        )
    return found


def _resume(path: Path, config: RunConfig, stages: list[Stage]) -> Start:
    record = read_record(path)
    _check_record(record, f"checkpoint {path}", config, stages)
    model = stages[record.stage].model
    return Start(
        path=path,
        source=TorchDistSource(path, record),
        plan=resharding(model),
        stage=record.stage,
        step=record.step,
        optimizer_step=record.optimizer_step,
        growths=record.growths,
        resumes=True,
    )


def _check_record(record: Record, where: str, config: RunConfig, stages: list[Stage]) -> None:
    """Refuse a checkpoint of another run."""
    if record.stage >= len(stages):
        raise UserError(f"{where} is of stages[{record.stage}], but the run has {len(stages)}")
    stage = stages[record.stage]
    if record.model_config.resolved != stage.model.resolved:
        raise UserError(f"{where} holds another model than stages[{record.stage}] describes")
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
    longest = record.config["train"]["seq_length"]
    if config.train.seq_length != longest:
        raise UserError(
            f"{where} has read samples of train.seq_length={longest}; of "
            f"train.seq_length={config.train.seq_length} they would be other ones"
        )
    if stage.tokens_at(record.step) != record.consumed_tokens:
        raise UserError(
            f"{where} has consumed {record.consumed_tokens} tokens in {record.step} steps, the "
            f"stages now consume {stage.tokens_at(record.step)}; restore their batches (from here "
            "on, a new batch is a new stage)"
        )


def _first_plan(source: ModelConfig, config: RunConfig, stage: Stage) -> Plan:
    where = "stages[0]"
    check_growth(source, stage.model, stage.grow, where)
    return growth(
        source,
        stage.model,
        stage.grow,
        target_depth=config.model.num_layers,
        seed=config.run.seed,
        where=f"{where}.grow",
    )


def _grow(stored: Source, config: RunConfig, stage: Stage) -> Start:
    record, where = stored.record, f"checkpoint {stored.path}"
    source = record.model_config
    plan = _first_plan(source, config, stage)
    if plan.optimizer_state != "reset":
        for kind in moments(config.optimizer.optimizer, matrix=False, in_layer=False):
            if kind not in stored.kinds("decoder.final_layernorm.weight"):
                raise UserError(
                    f"{where} holds no {kind} of {config.optimizer.optimizer}; set "
                    "stages[0].grow.optimizer_state: reset"
                )
    step = 0
    if config.checkpoint.start == "continue":
        step = record.step
        if not stage.first_step <= step < stage.last_step:
            raise UserError(
                f"{where} is at step {step}; to continue there, stages[0] must cover it, not steps "
                f"{stage.first_step} to {stage.last_step}; or set checkpoint.start: afresh"
            )
        _check_tokens(record, where, config, stage)
    event = GrowthEvent(
        step=step,
        stage=0,
        summary=plan.summary,
        source_layout="on disk",
        target_layout="",
        grow=asdict(stage.grow) if stage.grow else None,
        seed=plan.seed,
        source_model=asdict(source),
    )
    return Start(
        path=stored.path,
        source=stored,
        plan=plan,
        stage=0,
        step=step,
        optimizer_step=0 if plan.optimizer_state == "reset" else record.optimizer_step,
        growths=[*record.growths, event] if config.checkpoint.start == "continue" else [event],
        resumes=False,
    )
