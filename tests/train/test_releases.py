"""What a release may say, what its branch is, and what of it a run sets aside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.release import ReleaseSection
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import (
    CheckpointSection,
    OptimizerSection,
    ParametrizationSection,
    RunSection,
    ScheduleSection,
)
from megatron_grow.config.stages import StageSection, stage_section
from megatron_grow.config.timing import ended
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.parametrization.table import multipliers_of_run, parametrized
from megatron_grow.report.twin import twin_of
from megatron_grow.train.choice import Choice
from megatron_grow.train.releases import branch_of, check_releases
from megatron_grow.train.run_directory import make_room
from tests.toy import MODEL, plan_of, run_config


def _run(*releases: dict[str, Any] | None, **first: Any) -> RunConfig:
    """Two layers for 10 steps, then four for another 10; what each stage releases."""
    sections = [
        StageSection(until=10, model={"num_layers": 2}),
        StageSection(grow=GrowSection(depth="copying_stack")),
    ]
    for section, release in zip(sections, releases, strict=False):
        section.release = None if release is None else ReleaseSection(**release)
    sections[0] = replace(sections[0], **first)
    return run_config(*sections)


def _check(config: RunConfig) -> None:
    check_releases(config, config.resolve(1), [plan_of(config, 1, index) for index in (0, 1)])


SHARED = {"num_layers": 2, "layer_sharing": "1x2"}
REFUSED: dict[str, tuple[RunConfig, str]] = {
    "decayed already": (_run(None, {}), "stages[1].release: the run's own rate has decayed"),
    "a method that ends the stage": (
        _run({}, model=SHARED, until={"at_most": 10}, methods=["end_sharing"]),
        "stages[0].release, as a run of its own: stages[0].methods[0] ends the stage",
    ),
    "not a Hugging Face model": (
        replace(_run({"export_hf": True}), model=replace(MODEL, activation="squared_relu")),
        "stages[0].release, as a run of its own: no Hugging Face family can express the model",
    ),
    "one name twice": (
        _run({"name": "a"}, {"name": "a"}),
        "stages[1].release.name=a is that of stages[0].release already",
    ),
    "the name of another stage": (
        _run({}, {"name": "stage_0"}),
        "stages[1].release.name=stage_0 is that of stages[0].release already",
    ),
    "no optimizer state": (
        replace(_run({}), checkpoint=CheckpointSection(save_optimizer=False)),
        "stages[0].release goes on from a checkpoint, with the optimizer's state: ",
    ),
    "a peak below where the decay ends": (
        replace(_run(lr=1e-4), optimizer=OptimizerSection(min_lr=2e-4)),
        "stages[0].lr=0.0001 must be at least optimizer.min_lr=0.0002",
    ),
    "a cool-down of the whole run": (
        replace(_run(), schedule=ScheduleSection(cooldown_iters=20)),
        "schedule.cooldown_iters=20 must be less than train.train_iters=20",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_released(what: str) -> None:
    config, message = REFUSED[what]
    with pytest.raises(UserError) as caught:
        _check(config)
    assert str(caught.value).startswith(message)


def test_a_branch_does_not_know_by_which_growth_its_run_began() -> None:
    """A method that must is refused, although the first stage of the run can have it."""
    config = _run({}, methods=[{"name": "warm_up_new", "iters": 3}])
    grown = plan_of(config, 1, 1)
    with pytest.raises(UserError, match=r"^stages\[0\].release, as a run of its own: stages\[0\]"):
        check_releases(config, config.resolve(1), [grown, grown])


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"name": "../a"}, "stages[1].release.name=../a must be of letters, digits, dots, dashes"),
        ({"name": ".a"}, "stages[1].release.name=.a must be of letters"),
        ({"decay_iters": 0}, "stages[1].release.decay_iters=0 must be more than 0"),
        ({"decay_iters": 1.5}, "stages[1].release.decay_iters=1.5 must be a number of steps, or"),
        ({"decay": 3}, "stages[1].release.decay is not a field; known are decay_iters, export_hf"),
        (3, "stages[1].release=3 must be fields and their values"),
    ],
)
def test_what_a_release_cannot_say(written: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        stage_section({"release": written}, "stages[1]")
    assert str(caught.value).startswith(message)


def test_a_share_is_of_the_steps_before_the_branch() -> None:
    steps = [ReleaseSection(decay_iters=k).steps_after(250) for k in (0.1, 0.001, 1.0, 1, 300)]
    assert steps == [25, 1, 250, 1, 300]


def test_the_branch_of_a_stage_that_a_rule_ended() -> None:
    """It leaves at the step where the stage did end, and knows the batches before it."""
    sections = [
        StageSection(
            until={"rule": "loss_below", "loss": 1, "at_most": 8}, model={"num_layers": 1}
        ),
        StageSection(
            until=12,
            model={"num_layers": 2, "share_embeddings_and_output_weights": False},
            train={"global_batch_size": 4},
            grow=GrowSection(depth="random", vocab=None),
            release=ReleaseSection(name="middle", decay_iters=0.5),
            lr=5e-3,
        ),
        StageSection(grow=GrowSection(depth="random")),
    ]
    target = replace(MODEL, share_embeddings_and_output_weights=False)
    config = run_config(*sections, model=target, eval_interval=1)
    stages = ended(config.resolve(1), 0, 6)
    branch = branch_of(config, stages, 1, 12, Path("trunk/iter_0000012"))
    resolved = branch.config.resolve(1)
    assert [(s.first_step, s.last_step) for s in resolved] == [(0, 6), (6, 18)]
    assert [s.model for s in resolved] == [s.model for s in stages[:2]]
    assert [s.tokens_at(s.last_step) for s in resolved[:1]] == [stages[0].tokens_at(6)]
    assert resolved[1].tokens_at(12) == stages[1].tokens_at(12)
    assert (resolved[1].lr, resolved[1].release, branch.steps) == (5e-3, None, 6)
    schedule = branch.config.schedule
    assert (schedule.lr_decay_iters, schedule.cooldown_iters) == (20, 6)
    assert branch.config.checkpoint.load == "trunk/iter_0000012"
    assert branch.config.checkpoint_dir == Path("runs/run/releases/middle/checkpoints")
    assert branch.config.cache_dir == config.cache_dir
    elsewhere = replace(config, checkpoint=CheckpointSection(save="disk/run"))
    assert branch_of(elsewhere, stages, 1, 12, Path("x")).config.checkpoint_dir == Path(
        "disk/run/releases/middle"
    )


@pytest.mark.parametrize("rule", ["mup", "completep"])
def test_a_branch_keeps_the_rates_of_the_run_that_it_left(rule: str) -> None:
    """They follow from the sizes of the run's target, which the branch does not reach."""
    config = _run({})
    small = {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "kv_channels": 8}
    stages = [
        replace(config.stages[0], model={**small, "num_query_groups": 2}),
        replace(config.stages[1], grow=GrowSection(recipe="hypercloning", depth="copying_stack")),
    ]
    section = ParametrizationSection(name=rule, base=small)
    config = parametrized(replace(config, stages=stages, parametrization=section))
    resolved = config.resolve(1)
    branch = branch_of(config, resolved, 0, 10, Path("checkpoint")).config
    assert parametrized(branch) == branch
    tensors = logical_tensors(resolved[0].model)
    ours, trunk = (multipliers_of_run(each, tensors.values()) for each in (branch, config))
    of_small = replace(branch, parametrization=section)
    others = multipliers_of_run(of_small, tensors.values())
    assert all(ours(tensor) == trunk(tensor) for tensor in tensors.values())
    assert any(ours(tensor) != others(tensor) for tensor in tensors.values())


@pytest.mark.parametrize("rule", ["mup", "completep"])
@pytest.mark.parametrize(("base_width", "hidden_rate"), [(16, 1.0), (8, 0.5)])
def test_the_twin_of_a_branch_knows_its_own_size_alone(
    rule: str, base_width: int, hidden_rate: float
) -> None:
    """16 units: in a run of that size hidden matrices get base / 16 of the rate, all else 1."""

    def sizes(width: int) -> dict[str, int]:
        heads = {"num_attention_heads": 2, "num_query_groups": 2, "kv_channels": width // 2}
        return {"num_layers": 2, "hidden_size": width, "ffn_hidden_size": 4 * width, **heads}

    config = _run({}, model=sizes(16))
    grow = GrowSection(recipe="hypercloning", depth="copying_stack")
    stages = [config.stages[0], replace(config.stages[1], grow=grow)]
    section = ParametrizationSection(name=rule, base=sizes(base_width))
    config = parametrized(replace(config, stages=stages, parametrization=section))
    branch = branch_of(config, config.resolve(1), 0, 10, Path("checkpoint")).config
    twin = parametrized(twin_of(branch, "steps").config)
    assert twin.parametrization.target == {} and twin.model.hidden_size == 16
    plain = twin.model.plain_multipliers
    scale = plain["softmax_scale"] * hidden_rate**0.5  # 1 / size of a head, from the base's on
    expected = {**plain, "softmax_scale": scale, "logits_scaling": 1 / hidden_rate}
    assert twin.model.multipliers == pytest.approx(expected)
    tensors = logical_tensors(twin.model).values()
    multipliers = multipliers_of_run(twin, tensors)
    for tensor in tensors:
        matrix = len(tensor.checkpoint_shape) == 3  # layers, outputs, inputs
        assert multipliers(tensor).lr == (hidden_rate if matrix else 1.0), tensor.key


def test_a_run_that_begins_anew_sets_aside_what_it_had_released(tmp_path: Path) -> None:
    (tmp_path / "releases" / "small").mkdir(parents=True)
    config = replace(run_config(), run=RunSection(output_dir=str(tmp_path)))
    make_room(config, Choice(None, clears=True))
    (found,) = tmp_path.rglob("small")
    assert found.parents[1].name.startswith("set_aside_")
