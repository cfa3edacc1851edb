"""What acts on a stage while it trains, and what it sees of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch

from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.growth.plan import Plan
from megatron_grow.inputs.errors import UserError
from megatron_grow.live.stage import LiveStage
from megatron_grow.state.piece import Piece


class Report(NamedTuple):
    """What a method tells of a step."""

    event: str
    """Of its row of metrics: what happened, as ``stage_end``."""
    text: str
    """For the console, in one line."""
    values: Mapping[str, Any]
    """For the row, of JSON's types."""


@dataclass
class Context:
    """A stage while it trains: what its methods see, and what they may ask for.

    What they ask for must be the same on all ranks: follow the seed and the step, or numbers on
    which the ranks agree.
    """

    run: RunConfig
    stages: list[Stage]
    """Of the run."""
    live: LiveStage
    plan: Plan
    """How the stage began: what of it is new. It need not know the source's weights."""
    step: int
    """Global steps done; within a step, its number (the first is 1)."""
    methods: Mapping[str, TrainingMethod] = field(default_factory=dict)
    """Of the stage, by the place in its section of the run file that asks for each."""
    totals: torch.Tensor | None = None
    """What the losses and metrics of this rank's micro-batches in this step add up to, as
    :class:`~megatron_grow.live.objective.Objective` has it."""
    lr: float = math.nan
    """The rate of this step; that of parameters without one of their own."""
    grad_norm: float = math.nan
    """Over all parameters, before clipping; from ``before_update`` on, which may set it: gradients
    are clipped by what it is then."""
    updated: bool = False
    """Whether this step has changed the weights."""
    stopping: bool = False
    """Whether the run saves and stops after this step."""
    began: float = 0.0
    """When this step began, in seconds of ``time.perf_counter``."""
    waited: float = 0.0
    """Seconds of this step in which this rank has waited for its micro-batches."""
    last_step: int | None = None
    """After which the stage ends; None: not decided, at the latest after ``stage.last_step``."""
    end_reason: str | None = None
    """Why a method would have the stage end."""
    reports: list[Report] = field(default_factory=list)
    """Of this step, so far."""
    _skips: bool = False

    @property
    def stage(self) -> Stage:
        """The stage that trains."""
        return self.live.stage

    @property
    def ends(self) -> bool:
        """Whether the stage ends after this step."""
        return self.step >= (self.last_step or self.stage.last_step)

    @property
    def skips(self) -> bool:
        """Whether this step makes no update."""
        return self._skips

    def kept(self) -> list[Piece]:
        """What its methods keep of tensors, on this rank."""
        return [piece for method in self.methods.values() for piece in method.pieces(self)]

    def means(self) -> dict[str, float]:
        """Losses and metrics of this step over all ranks, ``loss`` first; every rank takes part."""
        assert self.totals is not None, "no step has been taken"
        return self.live.objective.means(self.totals)

    def mean_loss(self) -> float:
        """The loss among :meth:`means`; every rank takes part."""
        return self.means()["loss"]

    def skip_update(self) -> None:
        """Leave the state as it is in this step; for ``before_update``."""
        self._skips = True

    def end_stage(self, reason: str) -> None:
        """Have the stage end as soon as the data allow; the run goes on with the next stage.

        Args:
            reason: in a few words, for the record.

        Raises:
            UserError: the stage's ``until`` is a step, not a mapping with ``at_most``.
        """
        written = self.run.stages[self.stage.index].until if self.run.stages else None
        if not isinstance(written, dict):
            raise UserError(
                f"stages[{self.stage.index}].until={written}: a method would end the stage "
                f"({reason}); that needs a bound instead, as in {{at_most: 0.8}}"
            )
        self.end_reason = reason

    def report(self, event: str, text: str, **values: Any) -> None:
        """Tell of this step, by a row of the metrics and a line on the console.

        Args:
            event: what happened; one row of it for each step.
            text: of the line, without where the run is.
            values: of the row, the same on every rank.
        """
        self.reports.append(Report(event, text, values))

    def stop(self) -> None:
        """Save and stop the run after this step; it can be gone on with from there."""
        self.stopping = True

    def next_step(self) -> None:
        """Begin a step."""
        self.step += 1
        self.totals, self.grad_norm, self.updated, self._skips = None, math.nan, False, False
        self.reports = []


class TrainingMethod:
    """Acts while a stage trains. Its dataclass fields are its options in a run file.

    All hooks are called on every rank. A step is::

        before_step
            forward and backward pass, gradients reduced over data-parallel ranks
        before_sharing
            sum of the gradients of layers that share their parameters
        after_backward
            norm of the gradients
        sees, before_update
            clipping, update of the main parameters and the optimizer's state
        after_update
            the model's weights are made from the main parameters
        after_step

    One without an update (:meth:`Context.skip_update`) has no ``after_update``.
    """

    masks_new_units: ClassVar[bool] = False
    """Whether the units of ``Plan.new_units`` have no share in the function at first."""
    aligns_layers: ClassVar[bool] = False
    """Whether a data-parallel rank must update the same part of every layer, so that what it has of
    one can be compared with, or written to, what it has of another. Each layer is then reduced over
    data-parallel ranks by itself."""

    def check(self, stage: Stage, run: RunConfig, plan: Plan, where: str) -> None:
        """Raise :class:`~megatron_grow.inputs.errors.UserError`, beginning with ``where``.

        Before the run begins: of what cannot work with this stage, which begins by ``plan``.
        """

    def on_stage_start(self, ctx: Context) -> None:
        """The stage is filled; ``ctx.step`` steps are done, more than none in a resumed one."""

    def before_step(self, ctx: Context) -> None:
        """``ctx.step`` begins."""

    def before_sharing(self, ctx: Context) -> None:
        """Gradients are reduced over data-parallel ranks, and each layer has its own.

        Those of layers that share their parameters are summed after this; without such layers it
        is the same as :meth:`after_backward`.
        """

    def after_backward(self, ctx: Context) -> None:
        """Gradients are ready: ``Shard.gradient`` of :meth:`.LiveStage.shards`, to be changed.

        What is given None, as ``Shard.main.grad``, takes no part in norm and update.
        """

    def sees(self, ctx: Context) -> bool:
        """Whether this rank alone has seen what all must know; one reduction for all methods."""
        return False

    def before_update(self, ctx: Context, seen: bool) -> None:
        """The norm is known; ``seen``: whether any rank's :meth:`sees` said so.

        May ask for anything that a :class:`Context` offers.
        """

    def after_update(self, ctx: Context) -> None:
        """The main parameters and the optimizer's state have changed, the model has not yet."""

    def after_step(self, ctx: Context) -> None:
        """The step is done. May end the stage or stop the run."""

    def on_stage_end(self, ctx: Context) -> None:
        """The stage is left: let go of everything that belongs to it."""

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs besides the step: of JSON's types, the same on every rank."""
        return {}

    def pieces(self, ctx: Context) -> list[Piece]:
        """Tensors that a resume needs: memory that :meth:`on_stage_start` has made.

        It is saved with the stage's own state and, after :meth:`on_stage_start` of a resumed stage,
        filled on any layout. Each :meth:`.Shard.pieces` has a kind of its own, such as
        ``average``.
        """
        return []

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave; before :meth:`on_stage_start`."""
