"""The coordinate check at toy size: under a rule changes are flat, under none they are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_grow.benchmark.coordinate_figure import figure_of
from megatron_grow.benchmark.coordinates import Coordinates, Growth, Sweep, measure, report
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection, ParametrizationSection
from megatron_grow.inputs.errors import UserError
from tests.distributed import run_ranks

MODEL = ModelConfig(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    vocab_size=64,
    make_vocab_size_divisible_by=8,
    max_position_embeddings=32,
    share_embeddings_and_output_weights=False,
    init_method_std=0.1,
)
ADAM = OptimizerSection(lr=1e-2)
SIZES = {"width": (32, 64, 128), "depth": (2, 4, 8)}
STEPS = 4
INSIDE = ("embedding", "attention", "mlp", "residual_stream")


def run(name: str, optimizer: OptimizerSection = ADAM, **model: Any) -> RunConfig:
    base = {} if name == "standard" else {"hidden_size": 32, "num_layers": 2}
    return RunConfig(
        model=replace(MODEL, **model),
        optimizer=optimizer,
        parametrization=ParametrizationSection(name=name, base=base),
    )


RUNS = {
    "standard": run("standard"),
    "mup": run("mup"),
    "completep": run("completep"),
    "spectral": run("spectral"),
    "sgd": run("mup", OptimizerSection(optimizer="sgd", lr=0.3, clip_grad=0.0)),
    "muon": run(
        "mup",
        OptimizerSection(optimizer="muon", lr=1e-2, muon_lr=5e-3, muon_scale_mode="spectral"),
        share_embeddings_and_output_weights=True,
    ),
    "nsgd": run("mup", OptimizerSection(optimizer="muon_nsgd", lr=0.1, clip_grad=0.0)),
    "bert": run("mup", architecture="bert", options={"norm_position": "pre"}),
    "post-norm bert": run("mup", architecture="bert"),
}
WIDTHS = [name for name in RUNS if name != "completep"]  # which is mup's, but in depth
WIDER = ("standard", "mup", "muon")
"""Of half the width at first."""
SWEEPS: list[tuple[str, str, Growth]] = [
    *((name, "width", "depth") for name in WIDTHS),
    *((name, "width", "width") for name in WIDER),
    *((name, "depth", "depth") for name in ("standard", "completep")),
]
LARGER = (64, 128, 256)
"""Widths at which half of one, and what a BERT's layers give, are no longer of a few units."""
Found = dict[tuple[str, str, Growth], Sweep]


def _sweep() -> list[Sweep]:
    coordinates = Coordinates()
    return [
        coordinates.sweep(RUNS[name], along, _sizes(name, along, grows), STEPS, grows)
        for name, along, grows in SWEEPS
    ]


def _sizes(name: str, along: str, grows: Growth) -> tuple[int, ...]:
    return LARGER if grows == "width" or "bert" in name else SIZES[along]


@pytest.fixture(scope="module")
def found() -> Found:
    [sweeps] = run_ranks(1, _sweep)
    return dict(zip(SWEEPS, sweeps, strict=True))


@pytest.mark.parametrize(
    ("name", "grows"),
    [(name, grows) for name, along, grows in SWEEPS if along == "width" and name != "standard"],
)
def test_changes_are_flat_in_width(name: str, grows: Growth, found: Found) -> None:
    """Before the growth and after it; what new layers give is, too.

    Logits may fall: what the head's init has of their change goes as 1 / sqrt(width). At these
    widths a BERT's layers move a little less where they are wider, by up to -0.2.
    """
    sweep, least = found[name, "width", grows], -0.25 if "bert" in name else -0.15
    for quantity in INSIDE:
        for moment in ("moves", "grows", "moves on"):
            if (moment, quantity) in sweep.measured:
                assert least < sweep.slope(moment, quantity) < 0.15, (moment, quantity)
    for moment in ("moves", "moves on"):
        assert -0.35 < sweep.slope(moment, "logits") < 0.1, moment


def test_without_a_rule_they_are_not(found: Found) -> None:
    width, depth = (found["standard", along, "depth"] for along in ("width", "depth"))
    assert width.slope("moves", "logits") > 0.5
    assert width.slope("moves on", "logits") > 0.5
    for quantity in ("attention", "mlp", "residual_stream"):
        assert width.slope("grows", quantity) > 0.8
        assert width.slope("moves on", quantity) > 1.0
    assert depth.slope("moves on", "residual_stream") > 0.5
    wider = found["standard", "width", "width"]
    for moment in ("moves", "moves on"):
        assert wider.slope(moment, "residual_stream") > 0.5 < wider.slope(moment, "logits")


def test_layers_share_their_change_under_completep(found: Found) -> None:
    """Each branch gives and moves 1 / depth; all of them together do not depend on it.

    The stream falls a little at first: what independent branches give adds up as its root.
    """
    sweep = found["completep", "depth", "depth"]
    for moment in ("grows", "moves on"):
        for quantity in ("attention", "mlp"):
            assert sweep.slope(moment, quantity) == pytest.approx(-1.0, abs=0.25)
    assert -0.3 < sweep.slope("moves on", "residual_stream") < 0.1
    assert abs(sweep.slope("moves on", "logits")) < 0.15


def test_what_is_told_of_a_check(found: Found) -> None:
    sweeps = [found["mup", "width", "depth"], found["completep", "depth", "depth"]]
    told = report(sweeps, "completep")
    entry = told.values["depth/moves on/mlp"]
    assert entry["sizes"] == (2, 4, 8)
    doubled = [a / b for a, b in zip(entry["values"], entry["values"][1:], strict=False)]
    assert doubled == pytest.approx([2.0, 2.0], rel=0.4)
    assert len(told.rows) == 2 + sum(len(sweep.measured) for sweep in sweeps)
    assert figure_of(sweeps).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("config", "sizes", "said"),
    [
        (run("mup"), {"width": [32], "depth": []}, "a check needs two widths, or two depths"),
        (run("mup"), {"width": [32, 66]}, "model.num_attention_heads=4 does not divide"),
        (
            run("mup", architecture="tests.architectures.deep_linear:DeepLinear"),
            {"width": [32, 64]},
            "model.architecture=tests.architectures.deep_linear:DeepLinear does not say what",
        ),
        (
            replace(run("mup"), parametrization=ParametrizationSection(name="mup")),
            {"width": [32, 64]},
            "parametrization.base names nothing",
        ),
    ],
)
def test_what_cannot_be_checked(config: RunConfig, sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        measure(config, sizes, STEPS)
    assert str(error.value).startswith(said)
