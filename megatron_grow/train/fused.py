"""What a stage computes in fewer kernels, and what compiling them takes."""

from __future__ import annotations

import time

from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.train.console import Console


class FusedKernels(TrainingMethod):
    """Tells of them, once for each stage; of a stage without, nothing."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._compiles = False

    def on_stage_start(self, ctx: Context) -> None:
        """Name those that are used, and those that something lacks for."""
        used, lacking = ctx.live.kernels
        self._compiles = ctx.live.kernels.compiles
        if used or lacking:
            without = "".join(
                f"; without {name}, for lack of {what}" for name, what in lacking.items()
            )
            self._console.message(
                f"stage {ctx.stage.index}, kernels: {', '.join(used) or 'none'}{without}"
            )

    def after_step(self, ctx: Context) -> None:
        """Tell what the first step took, in which they are compiled."""
        if self._compiles:
            self._compiles = False
            seconds = time.perf_counter() - ctx.began
            self._console.event(ctx.step, f"compiled kernels: this step took {seconds:.1f} s")
