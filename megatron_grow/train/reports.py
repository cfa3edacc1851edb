"""What the methods of a stage tell of a step."""

from __future__ import annotations

from megatron_grow.methods.base import Context, TrainingMethod
from megatron_grow.train.output import Output, progress


class Reports(TrainingMethod):
    """Writes down what the methods before it have told."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def after_step(self, ctx: Context) -> None:
        """A row and a line for each."""
        for event, text, values in ctx.reports:
            self._output.console.event(ctx.step, f"stage {ctx.stage.index}, {text}")
            self._output.write({"event": event, **progress(ctx), **values})
