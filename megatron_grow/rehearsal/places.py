"""Where in the code something happens."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType, TracebackType

_HERE = str(Path(__file__).parent)
_ROOT = str(Path(__file__).parents[2])
_MARK = "/megatron"  # in the paths of this package's modules and of megatron-core's


def here() -> str:
    """The innermost line of megatron-core or this package that is being executed."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not _is_theirs(frame.f_code.co_filename):
        frame = frame.f_back
    return _line(frame.f_code.co_filename, frame.f_lineno) if frame else "?"


def raised_at(error: BaseException) -> str:
    """The innermost line of megatron-core or this package that ``error`` passed through."""
    found = "?"
    step: TracebackType | None = error.__traceback__
    while step is not None:
        path = step.tb_frame.f_code.co_filename
        if _is_theirs(path):
            found = _line(path, step.tb_lineno)
        step = step.tb_next
    return found


def _is_theirs(path: str) -> bool:
    return _MARK in path and not path.startswith(_HERE)


def _line(path: str, number: int) -> str:
    _, installed, rest = path.rpartition("site-packages/")
    return f"{rest if installed else path.removeprefix(_ROOT + '/')}:{number}"
