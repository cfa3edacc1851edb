"""Pickles that run code when an unpickler lets them."""

from __future__ import annotations

import builtins
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Bomb:
    """Something that, unpickled, calls a function."""

    def __init__(self, function: Callable, *args: Any) -> None:
        self._call = function, args

    def __reduce__(self) -> tuple:
        return self._call


def bombs(marker: Path) -> dict[str, Bomb]:
    """Ways to make the file ``marker``, by what they call."""
    return {
        "posix.system": Bomb(os.system, f"touch {marker}"),
        "builtin.*.exec": Bomb(builtins.exec, f"open({str(marker)!r}, 'w')"),
        "builtin.*.getattr": Bomb(getattr, "text", "upper"),
        "posix.mkdir": Bomb(os.mkdir, str(marker)),
    }
