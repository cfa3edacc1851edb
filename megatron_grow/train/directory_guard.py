"""A run whose directory another one has taken over, as from a host that stood still."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from megatron_grow.checkpoint.lock import BEAT_SECONDS, Holder, check_held
from megatron_grow.inputs.errors import UserError
from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.parallel.agreement import together


class DirectoryGuard(TrainingMethod):
    """Ends the run before it writes rows among another's; saves look for themselves."""

    def __init__(self, output_dir: str, holder: Holder | None) -> None:
        """Take a directory, and on rank 0 as whom it is held."""
        self._directory, self._holder = Path(output_dir), holder
        self._looked = time.time()  # which goes on while a host is suspended

    def sees(self, ctx: Context) -> bool:
        """Whether the directory is another's now; looked at as often as a lock is touched."""
        if time.time() - self._looked < BEAT_SECONDS:
            return False
        self._looked = time.time()
        with contextlib.suppress(OSError):  # the next look may come through
            try:
                self._check()
            except UserError:
                return True
        return False

    def before_update(self, ctx: Context, seen: bool) -> None:
        """Stop, on all ranks.

        Raises:
            AgreedError: who has taken the directory over.
        """
        if seen:
            together(self._check)

    def _check(self) -> None:
        if self._holder is not None:
            check_held(self._directory, self._holder)
