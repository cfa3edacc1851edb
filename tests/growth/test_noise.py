"""Noise that separates copies: how large, between which copies, and drawn anew by each growth."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.growth.plan import growth
from megatron_grow.operators.expansion import AxisOperator, Expansion
from megatron_grow.operators.indices import even_shares
from megatron_grow.state.axis_map import FRESH, Noise
from megatron_grow.state.kinds import MAIN_PARAM
from tests.growth.algebra import UNTIED, Weights, applied, loss_and_gradients, weights_of

FC1 = "decoder.layers.mlp.linear_fc1.weight"
FC2 = "decoder.layers.mlp.linear_fc2.weight"
WIDE = replace(UNTIED, hidden_size=64, ffn_hidden_size=96, vocab_size=512)


def split_off(source: ModelConfig, grow: dict[str, Any], quiet: dict[str, Any]) -> dict[str, Any]:
    """What one growth to twice the width adds to another, by key; and what the other makes."""
    target, weights = replace(source, hidden_size=2 * source.hidden_size), weights_of(source)
    for key, values in weights.items():
        if ".layers." in key:
            values[1] *= 3
    loud, calm = (
        applied(
            growth(source, target, GrowSection(width=spec), target_depth=1, seed=3),
            source,
            weights,
            MAIN_PARAM,
        )
        for spec in (grow, quiet)
    )
    return {key: (loud[key] - calm[key], calm[key]) for key in calm}


def test_noise_is_that_of_hypercloning() -> None:
    """arXiv 2409.12903: Gaussian, a tenth of a matrix's power at 10 dB, mirrored in each pair."""
    spec: dict[str, Any] = {"operator": "hypercloning"}
    found = split_off(WIDE, {**spec, "snr_db": 10.0}, spec)
    noise, quiet = found[FC1]
    for layer in range(2):
        first, second = noise[layer].split(64, 1)
        assert torch.allclose(first, -second, rtol=1e-12)
        # 6,144 values: 4 standard errors of a power are 7 %, of a correlation 5 %.
        ratio = first.square().mean() / quiet[layer].square().mean()
        assert ratio == pytest.approx(0.1, rel=0.07)
        z = first / first.std()
        assert z.pow(4).mean() == pytest.approx(3.0, abs=0.3)
        size = quiet[layer, :, :64].abs()
        for with_ in (size.flatten(), size.flatten().square()):
            assert torch.corrcoef(torch.stack([first.abs().flatten(), with_]))[0, 1].abs() < 0.06
        assert torch.corrcoef(first).triu(1).abs().max() < 0.6  # 64 samples a row
    for key, (noise, _) in found.items():
        read_by_rows = key.endswith(("qkv.weight", "fc1.weight"))
        assert bool(noise.any()) == read_by_rows, key  # the head gets none, nor do embeddings


def test_three_copies_have_one_pair() -> None:
    source = replace(WIDE, ffn_hidden_size=8)
    target = replace(source, ffn_hidden_size=24)
    grow = GrowSection(ffn={"operator": "hypercloning", "snr_db": 10.0})
    plan = growth(source, target, grow, target_depth=1, seed=3)
    weights = weights_of(source)
    noise = applied(plan, source, weights, MAIN_PARAM)[FC2] - torch.cat([weights[FC2]] * 3, 2) / 3
    first, second, third = noise.split(8, 2)
    assert torch.allclose(first, -second) and first.abs().min() > 0
    assert third.abs().max() < 1e-15


def test_noise_of_layers_that_the_source_has_not() -> None:
    """Nothing is copied, so nothing is measured."""
    target = replace(UNTIED, hidden_size=16)
    grow = GrowSection(width={"operator": "hypercloning", "snr_db": 10.0}, depth="random")
    source = replace(UNTIED, num_layers=0)
    plan = growth(source, target, grow, target_depth=2, seed=3)
    assert plan.questions == ()
    assert applied(plan, source, weights_of(source), MAIN_PARAM)[FC1].shape == (2, 12, 16)


def test_a_random_split_is_that_of_lemon() -> None:
    """The authors' code: fresh weights of the large model, projected on what adds up to W."""
    spec: dict[str, Any] = {"operator": "lemon", "split": "random"}
    found = split_off(WIDE, spec, {"operator": "hypercloning"})
    noise, _ = found[FC1]
    first, second = noise.split(64, 2)
    assert torch.allclose(first, -second, rtol=1e-9)
    assert first.std() == pytest.approx(WIDE.init_method_std / 2**0.5, rel=0.05)
    assert (first / first.std()).pow(4).mean() == pytest.approx(3.0, abs=0.3)


@pytest.mark.parametrize(
    "spec",
    [{"operator": "hypercloning", "snr_db": 10}, {"operator": "lemon", "split": "random"}],
    ids=str,
)
def test_each_of_several_growths_draws_its_own(spec: dict[str, Any]) -> None:
    """Wider than the tiles in which values are drawn, so that only the growth tells them apart."""
    models = [replace(UNTIED, ffn_hidden_size=size) for size in (256, 512, 1024)]
    weights: Weights = weights_of(models[0])
    noises = []
    for source, target in pairwise(models):
        plan = growth(source, target, GrowSection(ffn=spec), target_depth=2, seed=3)
        even = torch.cat([weights[FC2]] * 2, 2) / 2
        weights = applied(plan, source, weights, MAIN_PARAM)
        noises.append((weights[FC2] - even)[..., :256].flatten())
    # 4,096 values: 4 standard errors are 6 %.
    assert torch.corrcoef(torch.stack(noises))[0, 1].abs() < 0.07


class Halves(AxisOperator):
    """Another half of the units is copied in each of two layers, with noise."""

    keys = ("ffn",)

    def expansions(self, source: ModelConfig, target: ModelConfig) -> list[dict[str, Expansion]]:
        draws = []
        for layer, copies in enumerate((range(6), range(6, 12))):
            index = (*range(12), *copies)
            only = Expansion(tuple(i if i == layer else FRESH for i in range(2)))
            split = Expansion(index, share=even_shares(index), noise=Noise(index, level=1.0))
            draws.append({"layer": only, "ffn": split})
        return draws

    def caveat(self, source: ModelConfig, target: ModelConfig) -> None:
        """None."""


def test_each_layer_has_noise_between_its_own_copies() -> None:
    target = replace(UNTIED, ffn_hidden_size=18)
    grow = GrowSection(ffn="tests.growth.test_noise:Halves")
    plan = growth(UNTIED, target, grow, target_depth=2, seed=3)
    weights = weights_of(UNTIED)
    made = applied(plan, UNTIED, weights, MAIN_PARAM)
    for layer, copied in enumerate((slice(0, 6), slice(6, 12))):
        columns = made[FC2][layer]
        noise = columns[:, 12:] - weights[FC2][layer][:, copied] / 2
        assert noise.abs().min() > 0
        assert torch.allclose(columns[:, copied] + columns[:, 12:], weights[FC2][layer][:, copied])
    before, after = (loss_and_gradients(*of)[0] for of in ((UNTIED, weights), (target, made)))
    torch.testing.assert_close(after, before, rtol=1e-12, atol=0)
