"""Names inside a checkpoint directory; Megatron-LM's own."""

from __future__ import annotations

from pathlib import Path

import torch
from blake3 import blake3

from megatron_grow.checkpoint.regular import read_regular
from megatron_grow.config.errors import UserError
from megatron_grow.state.kinds import MAIN_PARAM

TRACKER = "latest_checkpointed_iteration.txt"
"""In the root: the step of the newest complete checkpoint."""
PENDING = f".{TRACKER}"
"""The tracker file of a checkpoint that is about to appear; renamed when it has."""
METADATA = ".metadata"
"""Where each chunk of each tensor lies."""
COMMON = "common.pt"
"""What megatron-core keeps beside the tensors."""
WRITER = "megatron_grow"
"""Marks the common state of a checkpoint that has a record."""
RECORD = "megatron_grow.json"
"""Step, stage, growth history and the run's configuration."""
LEGACY = "model_optim_rng.pt"
"""In directories ``mp_rank_*``, of the legacy format."""
SIDE_FILES = "huggingface"
"""Directory of the files that an imported model came with: tokenizer, generation settings."""
COMPLETE = "metadata.json"
"""megatron-core's mark of a whole ``torch_dist`` directory."""
MANIFEST = "manifest.json"
"""Digests of what is in the directory."""
IDENTIFYING = (MANIFEST, RECORD, METADATA, COMMON, "config.json")
"""Files that differ between any two checkpoints, in any format."""

STATE_PREFIX = "optimizer.state."
"""Begins the keys of main parameters and moments."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What weights are stored as."""

MAIN_NAMES = ("param", "fp32_param")
"""What main parameters are called in those keys: by the distributed optimizer of Megatron-LM and
here, and by its plain mixed-precision one."""


def step_dir(root: Path, step: int) -> Path:
    """Directory of the checkpoint of ``step``."""
    return root / f"iter_{step:07d}"


def replaced(checkpoint: Path) -> Path:
    """Where an older checkpoint of the same step stands while a new one takes its place."""
    return checkpoint.with_name(f".{checkpoint.name}.replaced")


def identity(checkpoint: Path) -> str:
    """What tells a checkpoint from any other, and is the same of its copies.

    It is a digest of the small files that say what is in it; empty where there are none.
    """
    found = blake3()
    for name in IDENTIFYING:
        try:
            content = read_regular(checkpoint / name)
        except FileNotFoundError:
            continue
        found.update(name.encode() + len(content).to_bytes(8, "little") + content)
    return found.hexdigest() if found.digest() != blake3().digest() else ""


def tensor_key(key: str, kind: str) -> str:
    """The key under which one kind of state of a tensor is stored, in Megatron's naming."""
    return f"{STATE_PREFIX}{MAIN_NAMES[0] if kind == MAIN_PARAM else kind}.{key}"


def is_complete(path: Path) -> bool:
    """Whether ``path`` is the directory of a whole checkpoint, of either of Megatron's formats."""
    return (path / COMPLETE).exists() or any(path.glob(f"mp_rank_00*/{LEGACY}"))


def saved_steps(root: Path) -> list[int]:
    """Steps of all complete checkpoints under ``root``, ascending."""
    return sorted(
        int(step)
        for path in root.glob("iter_*")
        if (step := path.name.removeprefix("iter_")).isdigit() and is_complete(path)
    )


def listed(steps: list[int]) -> str:
    """Steps for people: all of a few, the last of many."""
    if len(steps) > 8:
        return f"{len(steps)}, the last of them {', '.join(map(str, steps[-5:]))}"
    return ", ".join(map(str, steps)) or "none"


def latest(root: Path) -> Path | None:
    """The checkpoint that was saved last, by the tracker file; None where there is neither.

    Raises:
        UserError: a tracker that names no complete checkpoint, or checkpoints without a tracker.
    """
    tracker, text = root / TRACKER, _text(root / TRACKER)
    steps = saved_steps(root)
    complete = f"complete ones: {listed(steps)}"
    choices = f"{complete}; write one of these steps into the file"
    if (pending := _pending(root)) in steps:  # its save was killed between two renames
        return step_dir(root, pending)
    if text is None:
        if steps:
            raise UserError(
                f"{tracker} is missing, which names the newest of the checkpoints beside it; "
                f"{complete}; write the step to go on from into that file"
            )
        return None
    if text != "release" and not _is_step(text):
        raise UserError(f"{tracker} says {text[:40]!r}, which is no step; {choices}")
    path = step_dir(root, int(text)) if text.isdigit() else root / text
    if not path.exists() and (replaced(path) / COMPLETE).exists():
        return replaced(path)  # a save was killed between two renames
    if not is_complete(path):
        raise UserError(
            f"{tracker} says {text}, but {path} is not a complete checkpoint; {choices}"
        )
    return path


def _pending(root: Path) -> int:
    """The step that the tracker file was about to say; -1 if it has been written since."""
    tracker, pending = root / TRACKER, root / PENDING
    text = _text(pending) or ""
    if not _is_step(text):
        return -1
    overtaken = tracker.exists() and tracker.stat().st_mtime_ns >= pending.stat().st_mtime_ns
    return -1 if overtaken else int(text)


def _text(tracker: Path) -> str | None:
    try:
        return read_regular(tracker).decode(errors="replace").strip()
    except FileNotFoundError:
        return None


def _is_step(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 20


def locate(path: Path, named: str = "") -> Path:
    """The checkpoint that ``path`` is, a step's directory, or that its tracker file names.

    Args:
        path: a directory.
        named: begins the message of an error, for example ``checkpoint.load=``.

    Raises:
        UserError: nothing complete is there.
    """
    if is_complete(path):
        return path
    if not path.is_dir():
        raise UserError(f"{named}{path} is not a directory")
    found = latest(path)
    if found is None:
        raise UserError(
            f"{named}{path} holds neither {COMPLETE} (a complete checkpoint) nor {TRACKER}"
        )
    return found
