"""The checkpoints of a run: one directory for each step, and the tracker file that names one."""

from __future__ import annotations

from pathlib import Path

from megatron_grow.checkpoint.formats import DEFAULT, FORMATS, Formats, format_of
from megatron_grow.checkpoint.layout import PENDING, TRACKER, replaced, step_dir
from megatron_grow.files.regular import read_regular
from megatron_grow.inputs.errors import UserError


def is_complete(path: Path, also: Formats = ()) -> bool:
    """Whether ``path`` is a whole checkpoint of a root; ``also`` is that of :func:`format_of`."""
    kind = format_of(path, also)
    return kind is not None and kind.numbered


def saved_steps(root: Path, also: Formats = ()) -> list[int]:
    """Steps of all complete checkpoints under ``root``, ascending."""
    return sorted(
        int(step)
        for path in root.glob("iter_*")
        if (step := path.name.removeprefix("iter_")).isdigit() and is_complete(path, also)
    )


def listed(steps: list[int]) -> str:
    """Steps for people: all of a few, the last of many."""
    if len(steps) > 8:
        return f"{len(steps)}, the last of them {', '.join(map(str, steps[-5:]))}"
    return ", ".join(map(str, steps)) or "none"


def latest(root: Path, also: Formats = ()) -> Path | None:
    """The checkpoint that was saved last, by the tracker file; None where there is neither.

    Raises:
        UserError: a tracker that names no complete checkpoint, or checkpoints without a tracker.
    """
    tracker, text = root / TRACKER, _text(root / TRACKER)
    steps = saved_steps(root, also)
    complete = f"complete ones: {listed(steps)}"
    choices = f"{complete}; write one of these steps into the file"
    if not steps:
        choices = f"{complete}; a format that is not built in must be named, as the source format"
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
    if not path.exists() and is_complete(replaced(path), also):
        return replaced(path)  # a save was killed between two renames
    if not is_complete(path, also):
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


def locate(path: Path, named: str = "", also: Formats = ()) -> Path:
    """The checkpoint that ``path`` is, a step's directory, or that its tracker file names.

    Args:
        path: a directory.
        named: begins the message of an error, for example ``checkpoint.load=``.
        also: formats to recognise before those that are built in.

    Raises:
        UserError: nothing complete is there.
    """
    if is_complete(path, also):
        return path
    if not path.is_dir():
        raise UserError(f"{named}{path} is not a directory")
    found = latest(path, also)
    if found is None:
        mark = FORMATS.find(DEFAULT, "format").mark
        raise UserError(f"{named}{path} holds neither {mark} (a complete checkpoint) nor {TRACKER}")
    return found
