"""The rows of layers, at their interval, and what is told of layers that die."""

from __future__ import annotations

from typing import Any, cast

from megatron_grow.methods.base import Context
from megatron_grow.train.dying_layers import Dying, DyingLayers, watched
from megatron_grow.train.layer_numbers import LayerNumbers, Numbers
from megatron_grow.train.output import Output, progress
from megatron_grow.train.rows import DyingLayersRow, LayersRow

_CURE = "copies of trained layers, a larger init_method_std or muon may help: docs/layers.md"


class LayerRows(LayerNumbers):
    """Measures every ``train.layers_interval`` steps, and the first of a stage."""

    def __init__(self, output: Output) -> None:
        super().__init__(_due, self._write)
        self._output = output

    def on_stage_start(self, ctx: Context) -> None:
        """Besides: go on from the rows that a resumed stage has."""
        super().on_stage_start(ctx)
        self._dying = DyingLayers(watched(ctx.plan), ctx.run.train.dying_share)
        for row in self._output.rows("layers", ctx):
            self._dying.observe(row)

    def _write(self, ctx: Context, numbers: Numbers) -> None:
        row = cast(LayersRow, {"event": "layers", **progress(ctx), **_rounded(numbers)})
        self._output.write(row)
        found = self._dying.observe(row)
        if found:
            told: DyingLayersRow = {
                "event": "dying_layers",
                **progress(ctx),
                "found": [_rounded(each._asdict()) for each in found],
            }
            self._output.write(told)
        for each in found:
            self._output.console.event(ctx.step, _text(ctx, each))


def _due(ctx: Context) -> bool:
    return ctx.step == ctx.stage.first_step + 1 or ctx.step % ctx.run.train.layers_interval == 0


def _text(ctx: Context, found: Dying) -> str:
    layers = ", ".join(map(str, found.layers))
    least, most = (f"{share:.2g}" for share in (min(found.shares), max(found.shares)))
    shares = least if least == most else f"{least} to {most}"
    beside = "where it began" if found.signal == "gain" else "that of others"
    return (
        f"stage {ctx.stage.index}, layers {layers} may be dying: the {found.signal} of {found.key} "
        f"is {shares} of {beside}, below train.dying_share={ctx.run.train.dying_share} since step "
        f"{found.since}; {_CURE}"
    )


def _rounded(value: Any) -> Any:
    """Numbers to four digits: a row of many layers is long."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
