"""What short runs have measured about when to grow (``tools/calibrate.py``), and its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_grow.config.model import ModelConfig
from megatron_grow.files.durable import write_whole
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import Count, CountOrZero, check_fields
from megatron_grow.inputs.registry import configured
from megatron_grow.inputs.strict_yaml import read_yaml


@dataclass(frozen=True)
class Calibration:
    """Mixing time and the curve of the fixed-size model, from runs of its first steps."""

    train_iters: Count
    """Of the run that was calibrated."""
    mixing_steps: Count | None
    """From the growth until the grown model was as good as the fixed-size one; of the slowest
    seed. None: not within the runs."""
    mixing_steps_least: CountOrZero | None
    """Of the fastest seed, less the steps between two evaluations."""
    growth_step: CountOrZero | None
    """The latest that leaves ``mixing_steps`` to a run of ``train_iters``."""
    growth_step_most: CountOrZero | None
    """The same for ``mixing_steps_least``."""
    model: dict[str, Any]
    """The target."""
    steps: list[int]
    """Of the evaluations of the fixed-size run."""
    flops: list[float]
    """What it had cost by then, the whole model."""
    losses: list[float]
    """Validation losses, means over seeds."""
    evidence: dict[str, Any] = field(default_factory=dict)
    """How it was measured."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not len(self.steps) == len(self.flops) == len(self.losses) >= 2:
            raise UserError(
                f"steps, flops and losses must be as many, and at least two; they are "
                f"{len(self.steps)}, {len(self.flops)} and {len(self.losses)}"
            )

    @classmethod
    def read(cls, path: str, named: str = "calibration") -> Calibration:
        """The one in a file.

        Args:
            path: as :meth:`write` made it.
            named: begins the message of an error: the option that names the file.

        Raises:
            UserError: not there, or not a calibration.
        """
        values = read_yaml(Path(path), f"{named}:")
        if not isinstance(values, Mapping):
            raise UserError(f"{named}: {path} is no calibration; tools/calibrate.py makes one")
        return configured(cls, "a calibration", values, f"{named}: {path}")

    def write(self, path: Path, heading: str) -> None:
        """Write it to a file, below comments.

        Raises:
            OSError: that cannot be written.
        """
        comments = "".join(f"# {line}\n" for line in heading.splitlines())
        text = yaml.safe_dump(asdict(self), sort_keys=False, default_flow_style=None, width=100)
        write_whole(path, [(comments + text).encode()])

    def check_target(self, model: ModelConfig, path: str) -> None:
        """Raise :class:`UserError` unless it was made for that target."""
        made_for = {name: self.model.get(name) for name in asdict(model)}
        differ = [name for name, value in asdict(model).items() if made_for[name] != value]
        if differ:
            name = differ[0]
            raise UserError(
                f"calibration={path} was made for another model: {name}={made_for[name]}, now "
                f"{getattr(model, name)}; make it anew with tools/calibrate.py"
            )
