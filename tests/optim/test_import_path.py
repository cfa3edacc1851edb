"""Optimizers by import path do all that ours do, and no file of the product knows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.convert.synthetic import SyntheticReader, write
from megatron_grow.cost.memory import estimate_memory
from megatron_grow.cost.parameters import count_parameters
from megatron_grow.growth.forecast import forecast
from megatron_grow.growth.plan import growth
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.state.kinds import MAIN_PARAM
from tests.convert.toy import GPT, by_torch, command, equal
from tests.distributed import run_ranks
from tests.growth.algebra import applied
from tests.optim.toy import build, gpt, train, whole

LION, RMSPROP = "extend.lion:Lion", "tests.optim.rmsprop:RMSprop"
SECTIONS = {
    LION: OptimizerSection(LION, lr=1e-3, weight_decay=0.1, options={"beta2": 0.95}),
    RMSPROP: OptimizerSection(RMSPROP, lr=1e-3, weight_decay=0.0, options={"eps": 1e-3}),
}
"""An epsilon above the rounding of gradients, and no biases below: layouts can be compared."""
MODEL = gpt(add_bias_linear=False, normalization="RMSNorm", num_layers=4)
STATE = {LION: {"momentum"}, RMSPROP: {"square_avg"}}
EVERYTHING = ParallelConfig(
    tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True
)


@pytest.mark.parametrize("name", SECTIONS)
def test_training_on_every_kind_of_parallelism(name: str) -> None:
    """TP2 x PP2 x DP2 against one rank, in fp32: Lion's state sharded, RMSprop's not."""
    [(alone, expected)] = run_ranks(1, train, SECTIONS[name], ParallelConfig(), MODEL)
    ranks = run_ranks(8, train, SECTIONS[name], EVERYTHING, MODEL)
    for steps, _ in ranks:
        np.testing.assert_allclose(steps, alone, rtol=1e-4)
    state = whole([state for _, state in ranks])
    assert {kind for _, kind in state} == {MAIN_PARAM, *STATE[name]}
    for (key, kind), tensor in whole([expected]).items():
        difference = np.abs(state[key, kind] - tensor)
        # The sign of what is all but zero is rounding, and an entry moves by 1e-3 with it.
        allowed = 4e-3 if (name, kind) == (LION, MAIN_PARAM) else 1e-5
        assert difference.max() <= allowed and difference.mean() <= 2e-6, (key, kind)


def _fall(name: str) -> list[float]:
    """On a rank: how far the loss of one batch falls, in fp32 and in bf16."""
    fallen = []
    for precision in ("fp32", "bf16"):
        toy = build(SECTIONS[name], ParallelConfig(), MODEL, precision)
        losses = [toy.step(0)[0] for _ in range(8)]
        fallen.append(losses[0] - losses[-1])
    return fallen


@pytest.mark.parametrize("name", SECTIONS)
def test_bf16_follows_fp32(name: str) -> None:
    for full, half in run_ranks(2, _fall, name):
        assert full > 0.05 and half == pytest.approx(full, rel=0.1)


@pytest.mark.parametrize("name", SECTIONS)
def test_growth_moves_state_with_its_power(name: str) -> None:
    """The state of a gradient, carried, is the state of the gradient, carried."""
    target = gpt(hidden_size=64, num_attention_heads=8, num_query_groups=4, ffn_hidden_size=96)
    grow = GrowSection(width="hypercloning", heads="hypercloning", ffn="hypercloning")
    optimizer = optimizer_of(SECTIONS[name])
    plan = growth(gpt(), target, grow, target_depth=2, seed=1, optimizer=optimizer)
    generator = torch.Generator().manual_seed(1)
    gradients = {
        key: torch.randn(tensor.checkpoint_shape, generator=generator, dtype=torch.float64)
        for key, tensor in logical_tensors(gpt()).items()
    }
    adam = growth(gpt(), target, grow, target_depth=2, seed=1)
    carried = applied(adam, gpt(), gradients, "exp_avg")
    [(kind, power)] = optimizer.states.items()
    state = applied(plan, gpt(), {k: g**power for k, g in gradients.items()}, kind)
    scales = set()
    for key, values in carried.items():
        torch.testing.assert_close(state[key], values**power, rtol=1e-12, atol=0)
        first = gradients[key].flatten()[0]
        scales.add(round(float(values.flatten()[0] / first), 6))
    assert scales == {1.0, 0.5}, "the growth scales no gradient: powers make no difference"


@pytest.mark.parametrize("name", SECTIONS)
def test_converter(name: str, tmp_path: Path) -> None:
    """There and back over TP2 x PP2, and grown: new layers' state is zero, others' their own's."""
    source = write(tmp_path / "a", SyntheticReader(GPT, optimizer=name))
    truth, [state] = by_torch(source), STATE[name]
    layout = ("--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2)
    assert command("reshard", source, tmp_path / "b", *layout) == 0
    assert command("reshard", tmp_path / "b", tmp_path / "c") == 0
    assert equal(by_torch(tmp_path / "c" / source.name), truth)

    deeper = tmp_path / "grow.yaml"
    deeper.write_text("model: {num_layers: 6}\ngrow: {depth: random}")
    assert command("grow", source, tmp_path / "d", "--grow", deeper) == 0
    grown = by_torch(tmp_path / "d" / source.name)
    key = f"optimizer.state.{state}.decoder.layers.mlp.linear_fc2.weight"
    assert torch.equal(grown[key][:4], truth[key]) and not grown[key][4:].any()


def test_a_checkpoint_whose_optimizer_is_not_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Is copied, but not grown: nobody says how its state moves."""
    synthetic = SyntheticReader(GPT, optimizer=LION)
    synthetic.record.config["optimizer"]["optimizer"] = "nowhere.lion:Lion"
    source = write(tmp_path / "a", synthetic)
    assert command("reshard", source, tmp_path / "b", "--tensor-model-parallel-size", 2) == 0
    assert equal(by_torch(tmp_path / "b" / source.name), by_torch(source))
    deeper = tmp_path / "grow.yaml"
    deeper.write_text("model: {num_layers: 6}\ngrow: {depth: random}")
    assert command("grow", source, tmp_path / "c", "--grow", deeper) == 2
    assert "optimizer.optimizer=nowhere.lion:Lion cannot be imported" in capsys.readouterr().err
    assert command("grow", source, tmp_path / "c", "--grow", deeper, "--weights-only") == 0


@pytest.mark.parametrize("name", SECTIONS)
def test_memory_and_forecast(name: str) -> None:
    optimizer, count = optimizer_of(SECTIONS[name]), count_parameters(GPT)
    estimate = estimate_memory(GPT, ParallelConfig(), 4, precision="bf16", optimizer=optimizer)
    sharded = 4 if name == LION else 1
    assert estimate.moments == pytest.approx(4 * count / sharded, rel=0.05)
    plan = growth(GPT, GPT, None, target_depth=2, seed=1, optimizer=optimizer)
    assert forecast(plan).carried_bytes == 2 * 4 * count


MISTAKES = {
    "adm": ({}, "optimizer='adm' is not an optimizer; "),
    "extend.lyon:Lion": ({}, "optimizer=extend.lyon:Lion cannot be imported: "),
    "extend.lion:LionRule": ({}, "optimizer=extend.lion:LionRule is not an optimizer: a subclass"),
    LION: ({"beta": 0.9}, f"options.beta is not an option of {LION}; known are beta1, beta2"),
    RMSPROP: ({"alpha": 1.5}, "options.alpha=1.5 must be less than 1"),
    "adam": ({"beta1": 0.5}, "options.beta1 is not an option of adam; known are none"),
    "muon": ({"optimizer": "sgd"}, "options.optimizer is not an option of muon; known are none"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str) -> None:
    options, said = MISTAKES[name]
    with pytest.raises(UserError) as error:
        optimizer_of(OptimizerSection(name, options=options))
    assert str(error.value).startswith(f"optimizer.{said}")
