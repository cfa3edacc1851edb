"""Rules of when to grow: curves whose best step is known in closed form, published numbers."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig, parse_run
from megatron_grow.config.sections import TrainSection
from megatron_grow.config.stages import StageSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.rules.base import Observation, Rule
from megatron_grow.rules.calibration import Calibration
from megatron_grow.rules.curves import reached
from megatron_grow.rules.g_stack import growth_tokens
from megatron_grow.rules.table import RULES

ROOT = Path(__file__).parents[2]
MODEL = ModelConfig(num_layers=4, hidden_size=16, num_attention_heads=2, vocab_size=300)
STEPS = list(range(10, 1001, 10))


def fixed_size(step: float) -> float:
    """Loss of the full size after ``step`` steps of 5 FLOPs."""
    return 3 + 1000 / step


def calibration(path: Path, **changed: Any) -> str:
    """One with that curve, and a mixing time of 200 steps."""
    found = Calibration(
        train_iters=1000,
        mixing_steps=200,
        mixing_steps_least=150,
        growth_step=800,
        growth_step_most=850,
        model=asdict(MODEL),
        steps=STEPS,
        flops=[5.0 * step for step in STEPS],
        losses=[fixed_size(step) for step in STEPS],
    )
    replace(found, **changed).write(path, "a test's")
    return str(path)


def made(spec: dict[str, Any], model: ModelConfig = MODEL, **until: Any) -> Rule:
    """The rule of a stage that begins a run of 1,000 steps, asked at every tenth."""
    until = {"at_most": 0.95, "every": 10, "losses": "validation", **until, **spec}
    run = RunConfig(
        model=model,
        train=TrainSection(train_iters=1000, seq_length=16),
        stages=[StageSection(until=until), StageSection()],
    )
    stage = run.resolve(1)[0]
    assert stage.rule is not None
    return RULES.make(stage.rule.spec, "stages[0].until", run=run, stage=stage)


def ended(rule: Rule, loss: Any, cost: float = 1.0, every: int = 10) -> tuple[int, str] | None:
    """Where and why it ends a stage with these losses, whose steps cost so much."""
    history: list[Observation] = []
    for step in range(every, 1001, every):
        history.append(Observation(step, 128 * step, round(cost * step), loss(step)))
        if reason := rule.ends(history):
            return step, reason
    return None


def test_head_start_ends_where_a_step_is_worth_more_in_the_grown_model(tmp_path: Path) -> None:
    """The small model: 4 + 100 / t, of 1 FLOP a step, a fifth of the full size's.

    It has the loss of the full size after h = 1000 t / (t + 100) steps. What is spent beside what
    it is worth, t - 5 h, is least where (t + 100)^2 = 500,000: t = 607.
    """
    spec = {"rule": "head_start", "calibration": calibration(tmp_path / "found.yaml")}
    best = 500_000**0.5 - 100
    found = ended(made(spec), lambda t: 4 + 100 / t)
    # It sees the middle of five evaluations, 20 steps before the last.
    assert found is not None and best <= found[0] <= best + 40
    assert "of loss for a FLOP" in found[1]
    # Twice as dear: (t + 100)^2 = 250,000.
    dear = ended(made(spec), lambda t: 4 + 100 / t, cost=2.0)
    assert dear is not None and 400 <= dear[0] <= 440
    # As good as the full size at every step: always worth more.
    assert ended(made(spec), fixed_size) is None


def test_head_start_decides_nothing_beyond_the_calibration(tmp_path: Path) -> None:
    path = calibration(tmp_path / "found.yaml")
    rule = made({"rule": "head_start", "calibration": path, "window": 2})
    for level in (3.9, 200.0):  # below 4 after all its 1,000 steps; above 103 after its first ten
        assert ended(rule, lambda _, level=level: level) is None
    assert ended(rule, lambda _: 5.0) is not None, "a flat line, where the full size falls"


def test_calibrated_leaves_the_mixing_time(tmp_path: Path) -> None:
    spec = {"rule": "calibrated", "calibration": calibration(tmp_path / "found.yaml")}
    found = ended(made(spec), lambda _: 3.0)
    assert found == (800, "200 steps are left, and mixing takes 200")
    assert ended(made({**spec, "reserve": 1.5}), lambda _: 3.0)[0] == 700
    # Asked at 750 and 900, of which only the first leaves as many.
    assert ended(made(spec, every=150), lambda _: 3.0, every=150)[0] == 750


def test_calibrations_that_cannot_decide_are_refused(tmp_path: Path) -> None:
    whole = calibration(tmp_path / "whole.yaml")
    unmixed = calibration(
        tmp_path / "unmixed.yaml", **dict.fromkeys(("mixing_steps", "growth_step"))
    )
    slow = calibration(tmp_path / "slow.yaml", mixing_steps=1000)
    (tmp_path / "list.yaml").write_text("[1]")
    (tmp_path / "half.yaml").write_text(Path(whole).read_text().partition("model:")[0])
    where = r"^stages\[0\]\.until\."
    for spec, said in [
        ({"calibration": unmixed}, f"calibration={unmixed} has no mixing_steps"),
        ({"calibration": slow}, f"calibration={slow} asks for 1000 steps after the growth"),
        ({"calibration": str(tmp_path / "no.yaml")}, "calibration: .*no.yaml is not there$"),
        ({"calibration": str(tmp_path / "list.yaml")}, "calibration: .* is no calibration"),
        ({"calibration": str(tmp_path / "half.yaml")}, "calibration: .*half.yaml"),
        ({"calibration": whole, "reserve": 0}, "reserve=0"),
    ]:
        with pytest.raises(UserError, match=where + said):
            made({"rule": "calibrated", **spec})
    for name in ("calibrated", "head_start"):
        with pytest.raises(UserError, match=f"{where}calibration={whole} was made for another"):
            made({"rule": name, "calibration": whole}, replace(MODEL, num_layers=6))
    with pytest.raises(UserError, match=f"{where}losses=training cannot be compared"):
        made({"rule": "head_start", "calibration": whole}, losses="training")


@pytest.mark.parametrize(
    ("parameters", "tokens", "billions"),
    [(8e9, 15e12, 6.581), (7e9, 2e12, 11.113), (13e9, 2e12, 15.844), (70e9, 2e12, 42.475)],
)
def test_the_published_law(parameters: float, tokens: float, billions: float) -> None:
    """Du et al. 2024: Llama3-8B, Llama2-7B, 13B and 70B."""
    found = growth_tokens(parameters, 6 * parameters * tokens)
    assert found / 1e9 == pytest.approx(billions, abs=5e-4)


def test_g_stack_of_a_run() -> None:
    """6.953e9 parameters, 2.097e11 tokens: 0.88 x 9.84216 + 163.27 / 21.94194 - 5.74 = 10.3621."""
    config = parse_run(["--config", str(ROOT / "examples/gpt2_7b/run.yaml")])
    config = replace(config, model=replace(config.model, vocab_size=50304))
    rule = RULES.make("g_stack", "until", run=config, stage=config.resolve(64)[0])
    tokens = 10**10.3621
    seen = [Observation(1, round(share * tokens), 1, 3.0) for share in (0.999, 1.002)]
    assert rule.ends(seen[:1]) is None
    assert rule.ends(seen) == "2.307e+10 tokens, of 2.302e+10"
    with pytest.raises(UserError, match=r"rule=g_stack grows a model of .* and the run has 1\.28e"):
        made({"rule": "g_stack"})


def test_where_a_curve_has_fallen_to_a_level() -> None:
    steps, losses = [10.0, 20.0, 30.0, 40.0], [4.0, 3.0, 3.5, 2.0]
    assert reached(steps, losses, 3.25) == 17.5, "the first time"
    assert reached(steps, losses, 4.0) == 10.0
    assert reached(steps, losses, 2.0) == 40.0
    assert reached(steps, losses, 4.1) is None and reached(steps, losses, 1.9) is None
    assert reached([10.0, 20.0], [4.0, float("nan")], 3.0) is None
