"""What a checkpoint says about the run that wrote it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from megatron_grow.checkpoint.layout import RECORD
from megatron_grow.checkpoint.manifest import read_checked
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import Range, check_fields

Total = Annotated[int, Range(least=0, most=2**63 - 1)]


@dataclass(frozen=True)
class Beginning:
    """What a run was once told to begin from, or to go back to."""

    named: str
    """The directory."""
    identity: str
    """Of the checkpoint there (:func:`~.formats.identity`)."""


@dataclass
class GrowthEvent:
    """One growth that has happened."""

    step: int
    stage: int
    summary: str
    source_layout: str
    target_layout: str
    grow: dict[str, Any] | None
    seed: int
    source_model: dict[str, Any]
    """Shape before the growth."""


@dataclass
class StageEnd:
    """The end of a stage that a rule or a method might end."""

    stage: int
    step: int
    """Global step after which it ends."""
    reason: str
    """What the rule found, or the method; ``at_most`` where nothing was found until then."""


@dataclass
class Record:
    """Where a run stands: read before anything else on resume."""

    step: Total
    stage: Total
    """Index of the stage whose model is stored."""
    consumed_samples: Total
    """Whole sequences of the run's longest ``seq_length``, for megatron-core's own resume."""
    consumed_tokens: Total
    """Where the stream of training tokens goes on."""
    optimizer_step: Total
    """Updates that the moments have seen; Adam's bias correction counts from here."""
    model: dict[str, Any]
    """Shape of the stored model."""
    precision: str
    config: dict[str, Any]
    """The whole run file, resolved."""
    growths: list[GrowthEvent] = field(default_factory=list)
    stage_ends: list[StageEnd] = field(default_factory=list)
    """Those that are known, of stages that might end before ``at_most``; the last may be a few
    steps ahead."""
    parallel: dict[str, Any] = field(default_factory=dict)
    """The layout that it was written under, or for; any other reads it as well."""
    skipped_iters: int = 0
    """Steps so far without an update, because loss or gradients were not finite."""
    wandb_id: str | None = None
    """The run's name in the service of Weights & Biases."""
    corpora: dict[str, str] = field(default_factory=dict)
    """What tells each corpus, by its prefix, from one made anew under that name."""
    run_id: str = ""
    """Of the run, drawn when it began; those of two runs differ."""
    begun_from: list[Beginning] = field(default_factory=list)
    """What the run was told to begin from, and to go back to since."""
    methods: dict[str, Any] = field(default_factory=dict)
    """What the training methods of the stage remember, by their place in its section."""
    format: int = 1

    @property
    def model_config(self) -> ModelConfig:
        """Shape of the stored model."""
        return ModelConfig(**self.model)

    @property
    def layout(self) -> str:
        """The layout in short."""
        return ParallelConfig(**self.parallel).describe_cut() if self.parallel else "any layout"

    def to_json(self) -> str:
        """The record as text."""
        return json.dumps(asdict(self), indent=1)


def read_record(checkpoint: Path) -> Record:
    """The record that a directory holds.

    Raises:
        UserError: missing, unreadable or of another version; of what cannot be built here.
    """
    path = checkpoint / RECORD
    try:
        values = json.loads(read_checked(path))
        if values["format"] != Record.format:
            raise UserError(
                f"{path} has format {values['format']}; this version reads {Record.format}"
            )
        if "consumed_tokens" not in values:  # of a version that had one length for the whole run
            length = values["config"]["train"]["seq_length"]
            values["consumed_tokens"] = values["consumed_samples"] * length
        values["growths"] = [GrowthEvent(**growth) for growth in values["growths"]]
        values["stage_ends"] = [StageEnd(**end) for end in values.get("stage_ends", [])]
        begun = values.get("begun_from", [])
        values["begun_from"] = [Beginning(**beginning) for beginning in begun]
        return _checked(Record(**values), path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: nothing says what {checkpoint} holds") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def _checked(record: Record, path: Path) -> Record:
    """``record``, of values that can be."""
    try:
        for part in (record, *record.growths, *record.stage_ends, *record.begun_from):
            check_fields(part)
        _ = record.model_config, record.layout
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return record
