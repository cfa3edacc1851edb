"""Runs under a rule: against plain PyTorch with a table by hand, and on every layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import OptimizerSection, ParametrizationSection
from megatron_grow.model.architectures import logical_tensors
from tests.distributed import run_ranks
from tests.model import reference
from tests.optim.toy import build, gpt, train_each, whole

BASE = {"hidden_size": 16, "ffn_hidden_size": 24, "num_layers": 1}
"""Half as wide and as deep as the toy, with heads of half the size: 4 instead of 8."""
COMPLETEP = ParametrizationSection(name="completep", base=BASE)
ADAM = OptimizerSection(lr=1e-2, weight_decay=0.1, adam_eps=1e-3, clip_grad=0.0)
STEPS = 4


def _steps_of_the_engine() -> tuple[dict[str, np.ndarray], list[float], dict[str, np.ndarray]]:
    toy = build(ADAM, parametrization=COMPLETEP)
    states = [whole([toy.state()])]
    losses = [toy.step(number)[0] for number in range(STEPS)]
    states.append(whole([toy.state()]))
    before, after = (
        {key: values for (key, kind), values in state.items() if kind == "main_param"}
        for state in states
    )
    return before, losses, after


def _batch(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(120, (4, 17), generator=generator)


def test_several_steps_are_those_of_plain_torch() -> None:
    """CompleteP with AdamW: each tensor in a group of its own, by a table that is written here."""
    [(before, losses, after)] = run_ranks(1, _steps_of_the_engine)
    # m_d = m_L = 2, alpha = 1; standard at the base has scores of 1 / sqrt(4).
    model = replace(gpt(), softmax_scale=0.5 * 4 / 8, residual_multiplier=0.5, logits_scaling=2.0)
    tensors = logical_tensors(model)
    weights = {
        key: torch.from_numpy(values).double().view(tensors[key].checkpoint_shape).requires_grad_()
        for key, values in before.items()
    }

    def group(key: str) -> dict[str, Any]:
        fields = {"params": [weights[key]], "lr": 1e-2, "eps": 1e-3 / 2, "weight_decay": 0.0}
        if key.startswith("decoder.layers."):
            fields["eps"] = 1e-3 / 4
            if ".linear_" in key and key.endswith(".weight"):
                fields |= {"lr": 1e-2 / 2, "weight_decay": 0.1 * 2}
        elif key.startswith("embedding."):
            fields["weight_decay"] = 0.1
        return fields

    optimizer = torch.optim.AdamW([group(key) for key in weights], betas=(0.9, 0.95))
    for number in range(STEPS):
        tokens = _batch(number)
        loss = reference.losses(model, weights, tokens[:, :-1], tokens[:, 1:]).mean()
        assert losses[number] == pytest.approx(loss.item(), rel=1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for key, values in weights.items():
        moved = functional.mse_loss(values, torch.from_numpy(before[key]).view_as(values)) ** 0.5
        found = torch.from_numpy(after[key]).view_as(values)
        assert functional.mse_loss(found, values.float()) ** 0.5 < 1e-4 * moved, key


SPECTRAL = ParametrizationSection(name="spectral", base=BASE)
RUNS = {
    "completep, adam": (replace(ADAM, clip_grad=1.0), COMPLETEP),
    "spectral, muon": (OptimizerSection(optimizer="muon", lr=1e-3, muon_lr=2e-2), SPECTRAL),
    "completep, muon_nsgd": (
        OptimizerSection(optimizer="muon_nsgd", lr=1e-2, clip_grad=0.0),
        COMPLETEP,
    ),
    "mup, sgd": (
        OptimizerSection(optimizer="sgd", lr=1e-2),
        ParametrizationSection(name="mup", base=BASE),
    ),
}
LAYOUTS = {
    "tp2dp2": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2dp2": ParallelConfig(pipeline_model_parallel_size=2),
}


@pytest.fixture(scope="module")
def alone() -> list[tuple[list[float], dict[tuple[str, str], np.ndarray]]]:
    [found] = run_ranks(1, train_each, [*RUNS.values()], ParallelConfig())
    return [([norm for _, norm in steps], whole([state])) for steps, state in found]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_run_on_every_layout(layout: str, alone: Any) -> None:
    """Gradient norms, weights and moments of four steps; the state of Adam is sharded, the head is
    the embedding, on both ends of the pipeline."""
    ranks = run_ranks(4, train_each, [*RUNS.values()], LAYOUTS[layout])
    for number, (name, (norms, expected)) in enumerate(zip(RUNS, alone, strict=True)):
        for found in ranks:
            mine = [norm for _, norm in found[number][0]]
            np.testing.assert_allclose(mine, norms, rtol=1e-5, err_msg=name)
        actual = whole([found[number][1] for found in ranks])
        assert actual.keys() == expected.keys()
        for key, tensor in expected.items():
            difference = np.abs(actual[key] - tensor)
            if key[0] == "decoder.layers.self_attention.linear_qkv.bias":
                # A key's bias has a gradient of rounding alone, which Adam amplifies.
                difference[:, :, 2] = 0.0
            assert difference.max() <= 1e-5 * np.abs(tensor).max(), (name, key)
