"""Compound growth, against the arithmetic of its authors' code written out in numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.growth.plan import growth
from megatron_grow.state.kinds import MAIN_PARAM
from tests.growth.algebra import MODELS, applied, loss_and_gradients, weights_of

MLP = "encoder.layers.mlp."


@pytest.mark.parametrize("norms", ["pre-norm", "post-norm"])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_feed_forward_units_are_tiled_and_nothing_changes(norms: str, factor: int):
    """Kernels there are (in, out): the first tiled along its columns, the second along its rows and
    divided. The sums of both models have other terms in another order: rounding is all there is."""
    source = MODELS[f"BERT, {norms}"]
    target = replace(source, ffn_hidden_size=factor * source.ffn_size)
    plan = growth(source, target, GrowSection(recipe="compound_grow"), target_depth=9, seed=3)
    weights = weights_of(source)
    made = applied(plan, source, weights, MAIN_PARAM)
    assert plan.caveats == ()
    for layer in range(source.num_layers):
        small, large = (
            {
                key.removeprefix(MLP): values[layer].numpy()
                for key, values in model.items()
                if key.startswith(MLP)
            }
            for model in (weights, made)
        )
        intermediate, output = small["linear_fc1.weight"].T, small["linear_fc2.weight"].T
        tiled = np.tile(intermediate, [1, factor]).T
        assert np.array_equal(large["linear_fc1.weight"], tiled)
        assert np.array_equal(large["linear_fc1.bias"], np.tile(small["linear_fc1.bias"], factor))
        divided = (np.tile(output, [factor, 1]) / factor).T
        np.testing.assert_allclose(large["linear_fc2.weight"], divided, rtol=3e-16)
        assert np.array_equal(large["linear_fc2.bias"], small["linear_fc2.bias"])
    before, after = (loss_and_gradients(*pair)[0] for pair in ((source, weights), (target, made)))
    assert (after - before).abs().max() < 2e-15 * before.abs().max()


def test_a_layer_begins_as_the_small_model_s_in_turn():
    """Layer i as layer i mod 2; a new optimizer."""
    source = MODELS["BERT, post-norm"]
    target = replace(source, num_layers=5, ffn_hidden_size=2 * source.ffn_size)
    plan = growth(source, target, GrowSection(recipe="compound_grow"), target_depth=5, seed=3)
    weights = weights_of(source)
    made = applied(plan, source, weights, MAIN_PARAM)
    norms = "encoder.layers.mlp_bda.norm.weight"
    for layer in range(5):
        assert np.array_equal(made[norms][layer], weights[norms][layer % 2])
    for kind in ("exp_avg", "exp_avg_sq"):
        moments = applied(plan, source, weights, kind)
        assert all((values == 0).all() for values in moments.values())
