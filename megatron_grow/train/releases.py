"""Models that stages release: each is what a run of its own ends with, a branch of this one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from megatron_grow.checkpoint.formats import FORMATS, identity
from megatron_grow.checkpoint.huggingface.config import choose_family
from megatron_grow.checkpoint.open import open_reader, record_of
from megatron_grow.config.release import RELEASES
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.convert.selection import WeightsOnly
from megatron_grow.convert.target import target
from megatron_grow.growth.plan import Plan, initialisation
from megatron_grow.inputs.errors import UserError
from megatron_grow.methods import methods_of
from megatron_grow.model.architectures import differences, explicit
from megatron_grow.optim.schedule import LearningRateSchedule
from megatron_grow.parallel.agreement import gather, leads, place, together
from megatron_grow.train.choice import latest_or_none

EXPORT = "huggingface"
"""In the output_dir of a branch: what it ends with, for Hugging Face."""


@dataclass(frozen=True)
class Branch:
    """A run that leaves another, the trunk, at the end of one of its stages."""

    name: str
    config: RunConfig
    """A run file like any other: it goes on from a checkpoint of the trunk."""
    step: int
    """Of the trunk, at which it leaves."""
    export: Path | None
    """Where its last model is written for Hugging Face."""

    @property
    def steps(self) -> int:
        """It has of its own."""
        return self.config.train.train_iters - self.step


def branch_of(
    config: RunConfig, stages: list[Stage], index: int, step: int, checkpoint: Path
) -> Branch:
    """The branch that stage ``index`` releases.

    Args:
        config: the trunk.
        stages: what its stages resolve to, with the ends that are known.
        index: of one that releases.
        step: after which it ends.
        checkpoint: of that step.
    """
    release = stages[index].release
    assert release is not None and release.name is not None
    steps, output = release.steps_after(step), Path(config.run.output_dir)
    directory, save = output / RELEASES / release.name, config.checkpoint.save
    branch = replace(
        config,
        run=replace(
            config.run,
            name=f"{config.run.name}-{release.name}",
            output_dir=str(directory),
            overwrite=False,
        ),
        model=stages[index].model,
        parametrization=replace(
            config.parametrization, target=differences(config.model, stages[index].model)
        ),
        train=replace(config.train, train_iters=step + steps),
        schedule=replace(
            config.schedule,
            lr_decay_iters=config.schedule.lr_decay_iters or config.train.train_iters,
            cooldown_iters=steps,
        ),
        data=replace(config.data, cache_dir=str(config.cache_dir)),
        checkpoint=replace(
            config.checkpoint,
            save=save and str(Path(save) / RELEASES / release.name),
            load=str(checkpoint),
            initial=None,
            source_format=None,
        ),
        stages=[
            replace(
                section,
                until=stage.last_step if stage.index < index else None,
                model=explicit(stage.model) if stage.index < index else {},
                grow=section.grow if stage.index else None,  # it goes on, and does not grow again
                methods=section.methods if stage.index == index else [],
                release=None,
            )
            for section, stage in zip(config.stages[: index + 1], stages, strict=False)
        ],
    )
    return Branch(release.name, branch, step, directory / EXPORT if release.export_hf else None)


def due(
    config: RunConfig, stages: list[Stage], index: int, step: int, checkpoint: Path
) -> Branch | None:
    """The branch that stage ``index`` releases after ``step``, unless it is finished.

    Every rank takes part; the arguments are those of :func:`branch_of`. What another attempt of the
    run, since set aside, has released under that name will be set aside too.
    """
    if stages[index].release is None:
        return None
    branch = branch_of(config, stages, index, step, checkpoint)
    found = together(lambda: _progress(branch, checkpoint) if leads() else None)
    finished, of_another = gather(found)[0] or (False, False)
    if finished:
        return None
    run = replace(branch.config.run, overwrite=of_another)
    return replace(branch, config=replace(branch.config, run=run))


def _progress(branch: Branch, checkpoint: Path) -> tuple[bool, bool]:
    """Whether a branch is finished, and whether what is in its place left another checkpoint."""
    newest = latest_or_none(branch.config.checkpoint_dir)
    if newest is None:
        return False, False
    record = record_of(newest)
    if identity(checkpoint) not in {beginning.identity for beginning in record.begun_from}:
        return False, True
    written = branch.export is None or branch.export.exists()
    return written and record.step == branch.config.train.train_iters, False


def export(branch: Branch) -> None:
    """Write what a finished branch ends with for Hugging Face, if asked; every rank takes part.

    Raises:
        UserError: it cannot be written.
    """
    final = branch.export
    if final is None or gather(final.exists())[0]:
        return
    made = FORMATS.make(EXPORT, "format")
    source = together(lambda: open_reader(branch.config.checkpoint_dir, once=True))
    target(WeightsOnly(source), made, final, tell=lambda note: None).write(threads=1, verifies=True)


def check_releases(config: RunConfig, stages: list[Stage], plans: list[Plan]) -> None:
    """Refuse branches that could not be trained or exported.

    Args:
        config: the trunk.
        stages: what its stages resolve to.
        plans: how they begin.

    Raises:
        UserError: its message names the stage.
    """
    schedule = LearningRateSchedule(config.schedule, config.optimizer, config.train.train_iters)
    for stage in stages:
        if stage.release is None:
            continue
        where = f"stages[{stage.index}].release"
        if schedule.factor(stage.last_step) < 1e-6:
            raise UserError(
                f"{where}: the run's own rate has decayed to nothing at step {stage.last_step}, "
                "and the model is finished; leave it out, or keep the rate up: schedule: "
                "{lr_decay_style: constant}"
            )
        branch = branch_of(config, stages, stage.index, stage.last_step, config.checkpoint_dir)
        try:
            resolved = branch.config.resolve(place()[1])
            methods_of(resolved[-1], branch.config, plans[stage.index])
            if stage.index == 0:  # where it began by a growth, its branch does not know of that
                methods_of(resolved[0], branch.config, initialisation(stage.model, 0, 0))
            if branch.export is not None:
                choose_family(stage.model, None, {})
        except UserError as error:
            raise UserError(f"{where}, as a run of its own: {error}") from None
