"""The learning rate as a function of the global step alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_grow.config.sections import OptimizerSection, ScheduleSection
from megatron_grow.config.stages import Stage


class LearningRateSchedule:
    """Warm-up, then WSD, cosine, linear or constant, over the whole run.

    Global step 1 is the first update. Over the W steps of warm-up the rate is ``step / W`` of its
    peak, and at ``train_iters`` the decay reaches ``min_lr``. Growths do not restart it: a run that
    grows and one that does not have the same rate at the same step, unless a stage asks for a
    peak or a factor of its own or a re-warm-up. A cool-down leaves the curve where it is and falls
    to ``min_lr`` too. The curves are megatron-core's.

    Args:
        schedule: the shape.
        optimizer: the peaks and ``min_lr``.
        train_iters: steps of the whole run, all stages together.
    """

    def __init__(
        self, schedule: ScheduleSection, optimizer: OptimizerSection, train_iters: int
    ) -> None:
        self._peak, self._min_lr = optimizer.lr, optimizer.min_lr
        iters, cooldown = schedule.lr_decay_iters or train_iters, schedule.cooldown_iters
        warmup = round(schedule.lr_warmup_fraction * iters)
        self._curve = _curve(
            optimizer,
            lr_warmup_steps=warmup,
            lr_decay_steps=max(iters, warmup + 1),  # warm-up may be all of a run
            lr_decay_style=schedule.lr_decay_style,
            wsd_decay_steps=round(schedule.lr_wsd_decay_fraction * iters),
            lr_wsd_decay_style=schedule.lr_wsd_decay_style,
        )
        self._before_cooldown = train_iters - cooldown
        self._cooldown = _curve(
            optimizer,
            lr_warmup_steps=0,
            lr_decay_steps=max(cooldown, 1),
            lr_decay_style="WSD",
            wsd_decay_steps=cooldown,
            lr_wsd_decay_style=schedule.lr_wsd_decay_style,
        )

    def factor(self, step: int) -> float:
        """The rate at global ``step`` as a share of its peak, for a ``min_lr`` of 0."""
        return self._at(step, max_lr=1.0, min_lr=0.0)

    def lr(
        self, step: int, max_lr: float, stage: Stage | None = None, min_lr: float | None = None
    ) -> float:
        """The rate of the update that is global ``step`` (1 is the first).

        Args:
            step: from 1 to train_iters.
            max_lr: the peak; in a stage with a peak of its own, as many times that as it is of the
                optimizer's.
            stage: the stage that ``step`` lies in, for its peak, factor and re-warm-up: in its k-th
                step, ``k / rewarmup_iters`` of the rate, until that is all of it.
            min_lr: where the decay ends, if not at the optimizer's.
        """
        if stage is not None and stage.lr is not None:
            max_lr *= stage.lr / self._peak
        rate = self._at(step, max_lr, self._min_lr if min_lr is None else min_lr)
        if stage is None:
            return rate
        done = step - stage.first_step
        rewarmup = min(1.0, done / stage.rewarmup_iters) if stage.rewarmup_iters else 1.0
        return rate * stage.lr_multiplier * rewarmup

    def apply(self, optimizer: MegatronOptimizer, step: int, stage: Stage | None = None) -> None:
        """Write the rate of global ``step`` into every parameter group, each from its own peak to
        its own minimum."""
        for group in optimizer.param_groups:
            group["lr"] = self.lr(step, group["max_lr"], stage, group["min_lr"])

    def _at(self, step: int, max_lr: float, min_lr: float) -> float:
        self._curve.num_steps = min(step, self._before_cooldown)
        rate = self._curve.get_lr({"max_lr": max_lr, "min_lr": min_lr})
        if step <= self._before_cooldown:
            return rate
        self._cooldown.num_steps = step - self._before_cooldown
        return self._cooldown.get_lr({"max_lr": rate, "min_lr": min_lr})


def _curve(optimizer: OptimizerSection, **shape: Any) -> OptimizerParamScheduler:
    return OptimizerParamScheduler(
        SimpleNamespace(param_groups=[]),  # it is asked for rates, never to write them
        init_lr=0.0,
        max_lr=optimizer.lr,
        min_lr=optimizer.min_lr,
        start_wd=optimizer.weight_decay,
        end_wd=optimizer.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
        **shape,
    )
