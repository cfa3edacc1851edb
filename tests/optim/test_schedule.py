"""The schedule against closed forms."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from megatron_grow.config.batch import BatchShape
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import OptimizerSection, ScheduleSection
from megatron_grow.config.stages import Stage
from megatron_grow.inputs.errors import UserError
from megatron_grow.optim.schedule import LearningRateSchedule

ITERS = 10_000


def _schedule(min_lr: float = 0.0, iters: int = ITERS, **shape: object) -> LearningRateSchedule:
    optimizer = OptimizerSection(lr=0.5, min_lr=min_lr)
    return LearningRateSchedule(ScheduleSection(**shape), optimizer, iters)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("style", "middle"),
    [("linear", 0.5), ("cosine", 0.5), ("exponential", 0.41421), ("minus_sqrt", 0.29289)],
)
def test_wsd_tails(style: str, middle: float) -> None:
    schedule = _schedule(lr_wsd_decay_style=style)
    assert schedule.factor(9000) == 1.0
    assert schedule.factor(9500) == pytest.approx(middle, abs=1e-5)
    assert schedule.factor(10_000) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(("style", "share"), [("WSD", 0.8404), ("cosine", 0.9866)])
def test_published_share_of_learning_rate_before_four_fifths(style: str, share: float) -> None:
    schedule = _schedule(lr_decay_style=style)
    rates = [schedule.factor(step) for step in range(1, ITERS + 1)]
    assert sum(rates[: int(0.8 * ITERS)]) / sum(rates) == pytest.approx(share, abs=2e-4)


def test_warm_up_counts_the_first_update_as_one() -> None:
    schedule = _schedule()
    assert [schedule.factor(step) for step in (1, 100, 200, 201)] == [1 / 200, 0.5, 1.0, 1.0]


def test_cosine_linear_and_constant() -> None:
    step, ratio = 3000, (3000 - 200) / (10_000 - 200)
    cosine = 0.5 * (1 + math.cos(math.pi * ratio))
    assert _schedule(lr_decay_style="cosine").factor(step) == pytest.approx(cosine)
    assert _schedule(lr_decay_style="linear").factor(step) == pytest.approx(1 - ratio)
    assert _schedule(lr_decay_style="constant").factor(ITERS) == 1.0


def test_decay_ends_at_min_lr() -> None:
    schedule = _schedule(min_lr=0.1)
    assert schedule.lr(9500, max_lr=0.5) == pytest.approx(0.3)
    assert schedule.lr(10_000, max_lr=0.5) == pytest.approx(0.1)
    assert schedule.lr(10_000, max_lr=2.0) == pytest.approx(0.1)


def test_min_lr_above_a_peak_is_refused() -> None:
    with pytest.raises(UserError, match=r"optimizer\.min_lr=0\.1 .*optimizer\.muon_lr=0\.05"):
        LearningRateSchedule(
            ScheduleSection(), OptimizerSection(lr=0.5, muon_lr=0.05, min_lr=0.1), ITERS
        )


def _stage(lr_multiplier: float = 1.0, rewarmup_iters: int = 0) -> Stage:
    return Stage(
        index=1,
        first_step=5000,
        last_step=ITERS,
        model=ModelConfig(),
        parallel=ParallelConfig(),
        grow=None,
        batch=BatchShape(1024, 8, 1),
        lr_multiplier=lr_multiplier,
        rewarmup_iters=rewarmup_iters,
    )


def test_a_stage_does_not_restart_the_rate_unless_it_asks() -> None:
    schedule = _schedule()
    assert schedule.lr(5001, 0.5, _stage()) == schedule.lr(5001, 0.5) == 0.5
    assert schedule.lr(5001, 0.5, _stage(lr_multiplier=0.5)) == 0.25
    rewarmed = [schedule.lr(step, 0.5, _stage(1.0, 4)) for step in range(5001, 5006)]
    assert rewarmed == [0.125, 0.25, 0.375, 0.5, 0.5]


def test_a_stage_s_own_peak() -> None:
    """The shape of the whole run's schedule times it; where that ends is the run's."""
    own = replace(_stage(), lr=0.125)
    for style in ("WSD", "cosine"):
        schedule = _schedule(0.1, lr_decay_style=style)
        for step in (5001, 9250, 9999, ITERS):
            assert schedule.lr(step, 0.5, own) == schedule.lr(step, 0.125)
            assert schedule.lr(step, 2.0, own) == schedule.lr(step, 0.5), "in proportion"
            assert schedule.lr(step, 0.5, replace(own, lr=0.5)) == schedule.lr(step, 0.5)
    rewarmed = replace(own, rewarmup_iters=4, lr_multiplier=0.5)
    assert [_schedule().lr(5000 + k, 0.5, rewarmed) for k in (1, 4, 5)] == [1 / 64, 1 / 16, 1 / 16]


@pytest.mark.parametrize(
    ("style", "middle"),
    [("linear", 0.5), ("cosine", 0.5), ("exponential", 0.41421), ("minus_sqrt", 0.29289)],
)
def test_a_cool_down_falls_from_where_the_curve_is(style: str, middle: float) -> None:
    """5,000 steps of a schedule laid out over 10,000, the last 1,000 of them of a cool-down."""
    shape = {"lr_decay_iters": ITERS, "lr_wsd_decay_style": style}
    for whole in ("WSD", "cosine", "linear", "constant"):
        curve = _schedule(0.1, lr_decay_style=whole)
        schedule = _schedule(0.1, 5000, cooldown_iters=1000, lr_decay_style=whole, **shape)
        for step in (1, 200, 3999, 4000):
            assert schedule.lr(step, 0.5) == curve.lr(step, 0.5)
        begins = curve.lr(4000, 0.5)
        assert schedule.lr(4500, 0.5) == pytest.approx(0.1 + middle * (begins - 0.1), abs=1e-5)
        assert schedule.lr(4001, 0.5) == pytest.approx(begins, rel=0.05)
        assert schedule.lr(5000, 0.5) == pytest.approx(0.1)
    alone = _schedule(lr_decay_style="constant", cooldown_iters=2000)
    assert alone.factor(9000) == 0.5


def test_compound_growth_s_schedule() -> None:
    """Each stage's own of the TF Model Garden, as one of a run of three stages.

    There a stage counts its steps from 0: a warm-up over 10,000, then a constant rate, in the last
    stage one that falls to 0 over its 450,000. A warm-up leads to what the rate is at its end; here
    it is a factor on the falling rate, which differs by 1 in 45 at most, and is the same after it.
    """
    ends, warmup, last = (112_500, 225_000, 675_000), 10_000, 450_000
    schedule = _schedule(
        iters=ends[-1],
        lr_warmup_fraction=warmup / ends[-1],
        lr_wsd_decay_fraction=last / ends[-1],
    )
    for index, (first, end) in enumerate(zip((0, *ends), ends, strict=False)):
        stage = replace(
            _stage(rewarmup_iters=warmup if index else 0), first_step=first, last_step=end
        )

        def published(done: int, falls: bool = index == 2) -> float:
            return 0.5 * (1 - done / last if falls else 1.0)

        for done in (1, 2500, 5000, 9999):
            rate = schedule.lr(first + done, 0.5, stage)
            assert rate == pytest.approx(published(warmup) * done / warmup, rel=1 / 44)
        for done in (10_000, 50_000, end - first):
            rate = schedule.lr(first + done, 0.5, stage)
            assert rate == pytest.approx(published(done), rel=1e-12, abs=1e-15)


def test_apply_scales_each_group_from_its_own_peak() -> None:
    optimizer = SimpleNamespace(param_groups=[{"max_lr": m, "min_lr": 0.0} for m in (0.5, 4.0)])
    _schedule().apply(optimizer, 100, _stage(lr_multiplier=0.5))  # type: ignore[arg-type]
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 1.0]


@pytest.mark.parametrize("iters", [1, 2, 3, 20])
@pytest.mark.parametrize(
    ("warmup", "decay"), [(0.0, 0.0), (0.02, 0.1), (0.5, 0.5), (1.0, 0.0), (0.0, 1.0)]
)
def test_tiny_runs_have_rates(iters: int, warmup: float, decay: float) -> None:
    schedule = _schedule(iters=iters, lr_warmup_fraction=warmup, lr_wsd_decay_fraction=decay)
    assert all(0.0 <= schedule.factor(step) <= 1.0 for step in range(1, iters + 1))
