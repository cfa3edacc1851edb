"""Copies that share everything stay equal; what breaks the tie, breaks it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.config.stages import StageSection
from megatron_grow.optim.algorithms.newton_schulz import newton_schulz
from tests.distributed import run_ranks
from tests.toy import MODEL, Trace, begin, grow, layout, run_config, train_stage

STEPS = 5
FC1, FC2 = "decoder.layers.mlp.linear_fc1.weight", "decoder.layers.mlp.linear_fc2.weight"


def trained(optimizer: str, grow_section: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """Weights after some steps of a model, and as many after its growth."""
    config = run_config(
        StageSection(until=STEPS, model=model, parallel=layout()),
        StageSection(parallel=layout(), grow=GrowSection(**grow_section)),
        model=replace(MODEL, num_layers=model.get("num_layers", 2), ffn_hidden_size=128),
        optimizer=OptimizerSection(optimizer=optimizer, lr=1e-2),
        train_iters=2 * STEPS,
        global_batch_size=4,
    )
    live = begin(config, 1)
    train_stage(live, config, Trace())
    live = grow(live, config, 1)
    train_stage(live, config, Trace())
    pieces = [piece for piece in live.pieces() if piece.kind == "main_param"]
    return {
        key: np.concatenate([piece.data.numpy() for piece in pieces if piece.key == key])
        for key in (FC1, FC2)
    }


SMALL = {"num_layers": 2, "ffn_hidden_size": 64}
TILED: dict[str, Any] = {"ffn": "hypercloning"}


def halves(optimizer: str, policy: str, **options: Any) -> tuple[float, float]:
    """How far the copies of feed-forward units are apart, as rows and as columns; relative."""
    section = {"optimizer_state": policy}
    section |= {"ffn": {"operator": "hypercloning", **options}} if options else TILED
    index = np.arange(128) % 64
    if options.get("map") == "random":
        index[64:] = np.random.default_rng(0).integers(0, 64, 64)
    (found,) = run_ranks(1, trained, optimizer, section, SMALL)
    rows, columns = torch.from_numpy(found[FC1]), torch.from_numpy(found[FC2])
    difference = (rows - rows[:, index]).abs().max() / rows.abs().max()
    of_columns = (columns - columns[..., index]).abs().max() / columns.abs().max()
    return difference.item(), of_columns.item()


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_copies_with_copied_state_stay_equal(optimizer: str) -> None:
    """Bit for bit under Adam; under Muon up to the order of sums in its products."""
    apart = max(halves(optimizer, "carry"))
    assert apart == 0.0 if optimizer == "adam" else apart < 1e-5


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_carry_old_separates_them(optimizer: str) -> None:
    """The asymmetric reset [S, 0] of arXiv 2602.02472."""
    assert min(halves(optimizer, "carry_old")) > 1e-2


def test_a_random_map_separates_nothing() -> None:
    assert max(halves("adam", "carry", operator="fpi", map="random")) == 0.0


def test_a_random_split_separates_them() -> None:
    assert min(halves("adam", "carry", operator="lemon", split="random")) > 1e-2


def test_noise_separates_them() -> None:
    assert min(halves("adam", "carry", snr_db=10)) > 1e-2


def test_newton_schulz_of_two_copies() -> None:
    """NS([G; G]) has two equal halves, each NS(G) / sqrt(2)."""
    one = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    (both,) = newton_schulz(torch.cat([one, one])[None], 5)
    assert torch.allclose(both[:6], both[6:], atol=1e-6)
    # The iteration is not at its fixed point after five steps, so it must begin from one norm.
    (alone,) = newton_schulz(one[None], 5)
    assert torch.allclose(both[:6], alone / 2**0.5, atol=2e-2)


def test_layers_stacked_from_one_are_not_symmetric() -> None:
    """They see other inputs: gradients differ at once."""
    deeper: dict[str, Any] = {"depth": "copying_stack"}
    model = {"num_layers": 1, "ffn_hidden_size": 128}
    found = run_ranks(1, one_layer_to_two, deeper, model)[0]
    assert found > 1e-3


def one_layer_to_two(grow_section: dict[str, Any], model: dict[str, Any]) -> float:
    config = run_config(
        StageSection(until=STEPS, model=model, parallel=layout()),
        StageSection(parallel=layout(), grow=GrowSection(**grow_section)),
        model=replace(MODEL, num_layers=2, ffn_hidden_size=128),
        train_iters=STEPS + 3,
        global_batch_size=4,
    )
    live = begin(config, 1)
    train_stage(live, config, Trace())
    live = grow(live, config, 1)
    layers = [p.data for p in live.pieces() if p.key == FC1 and p.kind == "main_param"]
    assert torch.equal(layers[0], layers[1])
    train_stage(live, config, Trace())
    return (layers[0] - layers[1]).abs().max().item()
