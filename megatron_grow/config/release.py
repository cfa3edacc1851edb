"""A finished model that a stage leaves behind while the run goes on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import Range, check_fields

RELEASES = "releases"
"""In the output_dir of a run, and in the directory of its checkpoints where that is another: a
directory for each branch."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass
class ReleaseSection:
    """A branch that leaves the run where the stage ends, decays, and is a model of its own."""

    name: str | None = None
    """Of the branch, and of its directory in ``output_dir/releases``; absent: ``stage_0`` for
    ``stages[0]``."""
    decay_iters: Annotated[int | float, Range(above=0)] = 0.1
    """Steps of the branch, in which the learning rate falls to min_lr as lr_wsd_decay_style says; a
    number with a point, at most 1.0, is a share of the steps done until then."""
    export_hf: bool = False
    """Write the finished model as a Hugging Face directory too."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise UserError(
                f"name={self.name} must be of letters, digits, dots, dashes and underscores, and "
                "begin with a letter or a digit"
            )
        if isinstance(self.decay_iters, float) and self.decay_iters > 1.0:
            raise UserError(
                f"decay_iters={self.decay_iters} must be a number of steps, or a share of at most "
                "1.0"
            )

    def steps_after(self, step: int) -> int:
        """Steps of a branch that leaves the run after ``step`` steps."""
        if isinstance(self.decay_iters, int):
            return self.decay_iters
        return max(1, round(self.decay_iters * step))
