"""Names inside a checkpoint directory; Megatron-LM's own."""

from __future__ import annotations

from pathlib import Path

from megatron_grow.config.errors import UserError
from megatron_grow.state.kinds import MAIN_PARAM

TRACKER = "latest_checkpointed_iteration.txt"
"""In the root: the step of the newest complete checkpoint."""
COMMON = "common.pt"
"""What megatron-core keeps beside the tensors."""
WRITER = "megatron_grow"
"""Marks the common state of a checkpoint that has a record."""
RECORD = "megatron_grow.json"
"""Step, stage, growth history and the run's configuration."""
COMPLETE = "metadata.json"
"""Written last: a directory without it is not a checkpoint."""

STATE_PREFIX = "optimizer.state."
"""Begins the keys of main parameters and moments."""


MAIN_NAMES = ("param", "fp32_param")
"""What main parameters are called in those keys: by the distributed optimizer of Megatron-LM and
here, and by its plain mixed-precision one."""


def step_dir(root: Path, step: int) -> Path:
    """Directory of the checkpoint of ``step``."""
    return root / f"iter_{step:07d}"


def set_aside(checkpoint: Path) -> Path:
    """Where an older checkpoint of the same step stands while a new one takes its place."""
    return checkpoint.with_name(f".{checkpoint.name}.replaced")


def tensor_key(key: str, kind: str) -> str:
    """The key under which one kind of state of a tensor is stored, in Megatron's naming."""
    return f"{STATE_PREFIX}{MAIN_NAMES[0] if kind == MAIN_PARAM else kind}.{key}"


def saved_steps(root: Path) -> list[int]:
    """Steps of all complete checkpoints under ``root``, ascending."""
    return sorted(
        int(step)
        for path in root.glob("iter_*")
        if (step := path.name.removeprefix("iter_")).isdigit() and (path / COMPLETE).exists()
    )


def latest(root: Path) -> Path | None:
    """The checkpoint that the tracker file names; None where there is no tracker.

    Raises:
        UserError: a tracker that names no complete checkpoint.
    """
    tracker = root / TRACKER
    if not tracker.exists():
        return None
    text = tracker.read_text(errors="replace").strip()
    path = step_dir(root, int(text)) if text.isdigit() else root / text
    if not path.exists() and (set_aside(path) / COMPLETE).exists():
        return set_aside(path)  # a save was killed between two renames
    if not (path / COMPLETE).exists():
        steps = ", ".join(map(str, saved_steps(root))) or "none"
        raise UserError(
            f"{tracker} says {text!r}, but {path} is not a complete checkpoint; complete ones: "
            f"{steps}; write one of these steps into the file"
        )
    return path


def locate(load: str) -> Path:
    """The checkpoint that ``checkpoint.load`` names: a step's directory, or a root with a tracker.

    Raises:
        UserError: nothing complete is there.
    """
    path = Path(load)
    if (path / COMPLETE).exists():
        return path
    if not path.is_dir():
        raise UserError(f"checkpoint.load={load} is not a directory")
    found = latest(path)
    if found is None:
        raise UserError(
            f"checkpoint.load={load} holds neither {COMPLETE} (a complete checkpoint) nor {TRACKER}"
        )
    return found
