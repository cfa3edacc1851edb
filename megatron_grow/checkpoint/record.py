"""What a checkpoint says about the run that wrote it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_grow.checkpoint.layout import RECORD
from megatron_grow.checkpoint.manifest import read_checked
from megatron_grow.config.errors import UserError
from megatron_grow.config.model import ModelConfig


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
class Record:
    """Where a run stands: read before anything else on resume."""

    step: int
    stage: int
    """Index of the stage whose model is stored."""
    consumed_samples: int
    """Whole sequences of the run's longest ``seq_length``, for megatron-core's own resume."""
    consumed_tokens: int
    """Where the stream of training tokens goes on."""
    optimizer_step: int
    """Updates that the moments have seen; Adam's bias correction counts from here."""
    model: dict[str, Any]
    """Shape of the stored model."""
    precision: str
    config: dict[str, Any]
    """The whole run file, resolved."""
    growths: list[GrowthEvent] = field(default_factory=list)
    format: int = 1

    @property
    def model_config(self) -> ModelConfig:
        """Shape of the stored model."""
        return ModelConfig(**self.model)

    def to_json(self) -> str:
        """The record as text."""
        return json.dumps(asdict(self), indent=1)


def read_record(checkpoint: Path) -> Record:
    """The record of a checkpoint directory.

    Raises:
        UserError: missing, unreadable or of another version.
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
        return Record(**values)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: {checkpoint} was not written by megatron_grow"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
