"""Every field has a range: values outside of it, and what is said of them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import yaml

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.run import RunConfig, parse_run
from megatron_grow.config.stages import StageSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.operators import OPERATORS, operator

OUTSIDE = {
    "run.seed": [-1, 2**32],
    "run.output_dir": ["", "  ", 256 * "x"],
    "checkpoint.load": [f"/tmp/{256 * 'x'}/y"],
    "model.num_layers": [-1, 10_000_000],
    "model.hidden_size": [0, -64, 10_000_001],
    "model.num_query_groups": [0, -1],
    "model.kv_channels": [-4, 0],
    "model.vocab_size": [0, 2_000_000_000],
    "model.make_vocab_size_divisible_by": [0],
    "model.rotary_base": [0],
    "model.rotary_percent": [0.0, 5.0],
    "model.layernorm_epsilon": [-1.0, 0.0],
    "model.init_method_std": [-0.02],
    "model.hidden_dropout": [1.0, -0.1],
    "model.activation": [None, "relu"],
    "train.train_iters": [0],
    "train.eval_iters": [-1, 2**63],
    "optimizer.lr": [0.0, -1.0, float("nan"), float("inf")],
    "optimizer.min_lr": [-1.0, 1.0],
    "optimizer.weight_decay": [float("nan"), -0.1],
    "optimizer.adam_beta1": [1.5, 1.0, -0.1],
    "optimizer.adam_beta2": [1.0],
    "optimizer.adam_eps": [0.0],
    "optimizer.sgd_momentum": [1.0],
    "optimizer.muon_num_ns_steps": [-1, 0],
    "parametrization.depth_exponent": [-0.5, 1.5],
    "schedule.lr_warmup_fraction": [1.1],
    "schedule.lr_decay_iters": [0],
    "schedule.cooldown_iters": [-1],
    "data.num_workers": [-1],
    "data.train_data_path": [None, [float("nan"), "a"]],
    "checkpoint.keep_last": [-1],
    "parallel.bucket_size": [-3, 0],
    "parallel.tensor_model_parallel_size": [0],
    "logging.progress_bar": [None],
    "logging.peak_tflops": [0.0, -1.0],
    "train.fp8": ["int8"],
}


def refusal(directory: Path, run: dict) -> str:
    path = directory / "run.yaml"
    path.write_text(yaml.safe_dump(run))
    with pytest.raises(UserError) as caught:
        parse_run(["--config", str(path)])
    return str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [(name, value) for name, values in OUTSIDE.items() for value in values]
)
def test_values_outside_are_refused(field: str, value: object, tmp_path: Path) -> None:
    section, name = field.split(".")
    message = refusal(tmp_path, {section: {name: value}})
    assert message.startswith(f"{field}=") and " must " in message


STAGES = {
    "stages[0].rewarmup_iters=-10 must be at least 0": {"rewarmup_iters": -10},
    "stages[0].lr_multiplier=-1.0 must be at least 0": {"lr_multiplier": -1.0},
    "stages[0].lr=0.0 must be more than 0": {"lr": 0.0},
    "stages[0].until=-0.5 must be more than 0": {"until": -0.5},
    "stages[0].grow.mask_iters=-1 must be at least 0": {"grow": {"mask_iters": -1}},
}


@pytest.mark.parametrize("message", STAGES)
def test_fields_of_stages(message: str, tmp_path: Path) -> None:
    assert refusal(tmp_path, {"stages": [STAGES[message]]}) == message


def test_options_of_operators() -> None:
    with pytest.raises(UserError, match=r"^grow\.ffn\.seed=-1 must be at least 0$"):
        operator("ffn", {"operator": "fpi", "seed": -1}, "grow.ffn")
    with pytest.raises(UserError, match=r"^grow\.depth\.matrix=.*each entry is a finite number"):
        operator("depth", {"operator": "mix", "matrix": [[float("inf")]]}, "grow.depth")


def test_heads_that_rotary_positions_cannot_turn() -> None:
    sizes = {"hidden_size": 12, "num_attention_heads": 2, "position_embedding_type": "rope"}
    assert ModelConfig(**sizes).head_dim == 6
    with pytest.raises(UserError, match=r"model\.rotary_percent=0\.5 of heads of 6 are 3"):
        ModelConfig(**sizes, rotary_percent=0.5)


def sections() -> list[type]:
    hints = get_type_hints(RunConfig)
    found = [hints[f.name] for f in fields(RunConfig) if f.name != "stages"]
    operators = {o.find(name, "grow") for o in OPERATORS.values() for name in o.builtin}
    return [*found, StageSection, GrowSection, *sorted(operators, key=lambda each: each.__name__)]


def unbounded(hint: object) -> bool:
    """Whether a number of this kind has no range."""
    if get_origin(hint) in (Annotated, Literal):
        return False
    arguments = get_args(hint)
    if get_origin(hint) is Union or arguments:
        return any(map(unbounded, arguments))
    return hint in (int,)


@pytest.mark.parametrize("section", sections(), ids=lambda section: section.__name__)
def test_every_whole_number_has_a_range(section: type) -> None:
    """A new field without one fails here; floats are at least finite."""
    hints = get_type_hints(section, include_extras=True)
    lists = {"layers", "zero", "tokens"}  # checked against the sizes of source and target
    given = {"sizes"}  # no run file sets it
    names = [f.name for f in fields(section) if f.name not in lists | given]
    bare = [name for name in names if unbounded(hints[name])]
    assert bare == []


def test_defaults_are_within() -> None:
    """And a model or layout that is made by hand is checked like one from a file."""
    assert parse_run([]).model == ModelConfig()
    with pytest.raises(UserError, match=r"parallel\.bucket_size=0"):
        ParallelConfig(bucket_size=0)
