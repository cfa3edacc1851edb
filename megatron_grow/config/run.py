"""A whole run: the parsed file and command line."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

from megatron_grow.config.kernels import KernelsSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import (
    CheckpointSection,
    DataSection,
    LoggingSection,
    OptimizerSection,
    ParametrizationSection,
    RunSection,
    ScheduleSection,
    TrainSection,
)
from megatron_grow.config.stages import Stage, StageSection, resolve_stages, stage_section
from megatron_grow.inputs.errors import UserError, parse_error
from megatron_grow.inputs.names import nearest
from megatron_grow.inputs.ranges import shown
from megatron_grow.inputs.strict_yaml import parse_yaml, read_yaml

RESOLVED = "config.yaml"
"""In the directory of a run: the complete run file (:func:`to_yaml`)."""


@dataclass
class RunConfig:
    """One run file; every field can be overridden on the command line by its path."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelConfig = field(default_factory=ModelConfig)
    """The target: what the run ends with."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """The layout of stages that do not name another."""
    train: TrainSection = field(default_factory=TrainSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    parametrization: ParametrizationSection = field(default_factory=ParametrizationSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    data: DataSection = field(default_factory=DataSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    logging: LoggingSection = field(default_factory=LoggingSection)
    kernels: KernelsSection = field(default_factory=KernelsSection)
    stages: list[StageSection] = field(default_factory=list)
    """From small to full size; empty: the target from start to end."""

    @property
    def checkpoint_dir(self) -> Path:
        """Where checkpoints of this run are written."""
        return Path(self.checkpoint.save or Path(self.run.output_dir) / "checkpoints")

    @property
    def cache_dir(self) -> Path:
        """Where indices of datasets are kept."""
        return Path(self.data.cache_dir or Path(self.run.output_dir) / "cache")

    def resolve(self, world_size: int) -> list[Stage]:
        """The stages, with all they resolve to, checked against ``world_size`` ranks.

        Raises:
            UserError: whatever in the run cannot work, with the field's name.
        """
        checkpoint = self.checkpoint
        if self.run.overwrite and checkpoint.load == "auto":
            raise UserError(
                "run.overwrite=true sets aside the run that checkpoint.load=auto resumes: leave "
                "one of them out"
            )
        cooldown, iterations = self.schedule.cooldown_iters, self.train.train_iters
        if cooldown >= iterations:
            raise UserError(
                f"schedule.cooldown_iters={cooldown} must be less than "
                f"train.train_iters={iterations}"
            )
        stages = resolve_stages(
            self.stages,
            self.model,
            self.parallel,
            self.train,
            grows_at_load=bool(checkpoint.initial or checkpoint.load_directory),
        )
        self._check_releases(stages)
        for stage in stages:
            where, model, batch = f"stages[{stage.index}]", stage.model, stage.batch
            if stage.lr is not None and stage.lr < self.optimizer.min_lr:
                raise UserError(
                    f"{where}.lr={stage.lr} must be at least "
                    f"optimizer.min_lr={self.optimizer.min_lr}"
                )
            if model.position_embedding_type == "learned_absolute" and (
                batch.seq_length > model.max_position_embeddings
            ):
                raise UserError(
                    f"{where}: train.seq_length={batch.seq_length} is longer than "
                    f"model.max_position_embeddings={model.max_position_embeddings}"
                )
            stage.parallel.check(model, replace(self.train, **asdict(batch)), world_size, where)
        return stages

    def _check_releases(self, stages: list[Stage]) -> None:
        releases = {s.index: s.release.name for s in stages if s.release is not None}
        for index, name in releases.items():
            where = f"stages[{index}].release"
            if not self.checkpoint.save_optimizer:
                raise UserError(
                    f"{where} goes on from a checkpoint, with the optimizer's state: "
                    "checkpoint.save_optimizer=false must be true"
                )
            first = next(other for other in releases if releases[other] == name)
            if first != index:
                raise UserError(f"{where}.name={name} is that of stages[{first}].release already")


_PRINT = "--print_config"


def build_parser() -> ArgumentParser:
    """The command line of ``pretrain_progressive.py``."""
    parser = ArgumentParser(
        prog="pretrain_progressive.py",
        description="Pretrain a transformer that starts small and grows, inside one torchrun job.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="run file (YAML)")
    parser.add_class_arguments(RunConfig, as_group=False, skip={"stages"})
    # Its entries are checked by hand: the library's messages do not say which is meant.
    parser.add_argument(
        "--stages",
        type=list[Any],
        default=[],
        help="from small to full size, as YAML; empty: the target from start to end. An entry has "
        + ", ".join(f.name for f in fields(StageSection)),
    )
    return parser


def parse_run(argv: list[str] | None = None) -> RunConfig:
    """Parse a command line such as ``--config run.yaml --train.train_iters 500``.

    Raises:
        UserError: an unknown or malformed field, or a file that is not there.
        SystemExit: after printing what ``--help`` or ``--print_config`` asks for.
    """
    argv = sys.argv[1:] if argv is None else argv
    if _PRINT in argv:
        # jsonargparse's own would print what was written, not what a recipe stands for.
        print(to_yaml(parse_run([part for part in argv if part != _PRINT])), end="")
        raise SystemExit(0)
    for path in _values_of("--config", argv):
        _check_file(Path(path))
    for text in _values_of("--stages", argv):
        parse_yaml(text, "--stages")
    parser = build_parser()
    try:
        namespace: Namespace = parser.parse_args(_replacing_lists(argv))
        values = parser.instantiate(namespace)
    except UserError:
        raise
    except (
        Exception
    ) as error:  # jsonargparse raises ArgumentError, TypeError, ValueError, YAMLError
        raise _unknown_option(error) or parse_error(error) from error
    sections = {name: value for name, value in vars(values).items() if name != "config"}
    written = sections["stages"] or []  # null, where a file has the key alone
    stages = [stage_section(entry, f"stages[{i}]") for i, entry in enumerate(written)]
    return RunConfig(**{**sections, "stages": stages})


def _values_of(option: str, argv: list[str]) -> list[str]:
    """What ``option`` is given on a command line, each time."""
    follow = [value for name, value in pairwise(argv) if name == option]
    return follow + [part.split("=", 1)[1] for part in argv if part.startswith(f"{option}=")]


def _check_file(path: Path) -> None:
    """Refuse a run file with names that are not those of its sections and their fields."""
    content, where = read_yaml(path, "--config"), f"--config {path}"
    known = _field_names()
    if not isinstance(content, dict):
        raise UserError(f"{where} must hold sections: {', '.join(known)}")
    for name, section in content.items():
        if name not in known:
            raise UserError(f"{where}: {name} is not a section; {nearest(str(name), known)}")
        if name == "stages":
            continue
        if not isinstance(section, dict):
            raise UserError(f"{where}: {name}={shown(section)} must be fields and their values")
        for field_ in section:
            if field_ not in known[name]:
                raise UserError(
                    f"{where}: {name}.{field_} is not a field; " + nearest(str(field_), known[name])
                )


def _field_names() -> dict[str, list[str]]:
    """The fields of each section of a run file."""
    kinds = get_type_hints(RunConfig)
    return {
        section.name: [f.name for f in fields(kinds[section.name])]
        if is_dataclass(kinds[section.name])
        else []
        for section in fields(RunConfig)
    }


def _unknown_option(error: Exception) -> UserError | None:
    """What to say of an option that no field has; None for another error."""
    head, _, unknown = str(error).partition("unrecognized arguments: ")
    if head or not unknown:
        return None
    option = unknown.split("=")[0].split()[0]
    known = [f"--{name}.{field_}" for name, names in _field_names().items() for field_ in names]
    meant = [*known, "--config", "--stages", _PRINT, "--help"]
    return UserError(f"{option} is not an option; {nearest(option, meant)}")


def _replacing_lists(argv: list[str]) -> list[str]:
    """Make a list of stages on the command line replace that of the run file.

    jsonargparse merges two lists of the same length, entry by entry; emptied first, they differ.
    """
    return [
        part
        for argument in argv
        for part in (
            ["--stages=[]", argument] if argument.split("=")[0] == "--stages" else [argument]
        )
    ]


def to_yaml(config: RunConfig) -> str:
    """The complete configuration as YAML, defaults included; parses back to the same run."""
    return yaml.safe_dump(asdict(config), sort_keys=False)


def to_run_file(config: RunConfig) -> str:
    """What of ``config`` is not as it is by default, as somebody would write it; parses back to it.

    A run file for a reader, where :func:`to_yaml` is a record.
    """
    values, defaults = asdict(config), asdict(RunConfig())
    written: dict[str, Any] = {
        name: _unlike(section, defaults[name])
        for name, section in values.items()
        if name != "stages"
    }
    written["stages"] = [_unlike(stage, asdict(StageSection())) for stage in values["stages"]]
    return yaml.safe_dump(
        {name: section for name, section in written.items() if section},
        sort_keys=False,
        default_flow_style=None,
        width=100,
    )


def _unlike(section: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """The fields of which ``section`` has another value than ``default``."""
    return {name: value for name, value in section.items() if value != default[name]}
