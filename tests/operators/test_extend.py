"""The operators of ``examples/extend``: one that looks at weights, and one of depth."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_grow.config.grow import GrowSection
from megatron_grow.growth.plan import growth
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.kinds import MAIN_PARAM
from tests.distributed import run_ranks
from tests.growth.algebra import GPT2, LLAMA, answers, applied, loss_and_gradients, weights_of
from tests.growth.test_operators_on_ranks import Case, run
from tests.growth.three_ways import Found, grow_all_ways
from tests.logits import agreed, logits
from tests.state.snapshot import assemble
from tests.toy import Trace, begin, layout, plan_of, train_stage

IMPORTANCE = "extend.importance:Importance"
FC1 = "decoder.layers.mlp.linear_fc1.weight"
FC2 = "decoder.layers.mlp.linear_fc2.weight"


def chosen(fc2: torch.Tensor, size: int) -> list[list[int]]:
    """In each layer all units, and then those with the largest columns of (layer, hidden, ffn)."""
    norms = fc2.double().norm(dim=1)
    old = fc2.shape[2]
    return [[*range(old), *norm.sort(descending=True)[1].tolist()[: size - old]] for norm in norms]


def shares(index: list[int]) -> torch.Tensor:
    return torch.tensor([1 / index.count(i) for i in index], dtype=torch.float64)


# Between layouts, with depth: layers 1 and 3 are copies.

LAYOUTS = (
    layout(tp=2, pp=2, use_distributed_optimizer=True),
    layout(pp=4, use_distributed_optimizer=True),
)
CASE = Case({"ffn": IMPORTANCE, "depth": "identity"}, {"ffn_hidden_size": 100, "num_layers": 4})
RUN = run(CASE, LAYOUTS)
COPIED = [0, 0, 1, 1]


def grow_by_importance(root: str) -> Found:
    """On a rank of eight."""
    live = begin(RUN, 8)
    train_stage(live, RUN, Trace())
    return grow_all_ways(live, RUN, 8, Path(root), logits)


@pytest.fixture(scope="module")
def ranks() -> list[Found]:
    with tempfile.TemporaryDirectory() as root:
        return run_ranks(8, grow_by_importance, root)


def test_the_chosen_units_on_ranks(ranks: list[Found]) -> None:
    """TP2 PP2 DP2 to PP4 DP2, distributed optimizers: in memory, at load and offline alike."""
    source, target = (logical_tensors(stage.model) for stage in RUN.resolve(8))
    before = assemble(source, [rank.source for rank in ranks])
    old = {name: torch.from_numpy(values) for name, values in before.items()}
    grown = assemble(target, [rank.target for rank in ranks])
    units = chosen(old[FC2, MAIN_PARAM], 100)
    assert units[0] != units[1]
    for target_layer, layer in enumerate(COPIED):
        index, share = units[layer], shares(units[layer])
        assert min(share) == 0.5 and max(share) == 1.0
        expected = {
            (FC1, MAIN_PARAM): old[FC1, MAIN_PARAM][layer][index],
            (FC2, MAIN_PARAM): (old[FC2, MAIN_PARAM][layer][:, index].double() * share).float(),
        }
        first = COPIED.index(layer) == target_layer
        for kind, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
            rows = old[FC1, kind][layer][index].double() * (share**power)[:, None]
            expected[FC1, kind] = rows.float() * first  # a new layer's moments begin at zero
            expected[FC2, kind] = old[FC2, kind][layer][:, index] * first
        for (key, kind), values in expected.items():
            assert np.array_equal(grown[key, kind][target_layer], values.numpy()), (key, kind)
    for other in ("loaded", "offline"):
        same = assemble(target, [getattr(rank, other) for rank in ranks])
        assert set(same) == set(grown)
        assert all(np.array_equal(same[name], grown[name]) for name in grown), other


def test_the_function_is_kept_on_ranks(ranks: list[Found]) -> None:
    assert plan_of(RUN, 8, 1).caveats == ()
    before = agreed(rank.before for rank in ranks)
    after = agreed(rank.after for rank in ranks)
    assert before.std() > 0.01
    assert np.abs(after - before).max() < 1e-5 * np.abs(before).max()


# By the algebra, in fp64.


def test_gated_units_and_mirrored_layers() -> None:
    """A gate goes with what it gates; more than twice the units; layers that are copies."""
    target = replace(LLAMA, ffn_hidden_size=30, num_layers=5)
    grow = GrowSection(ffn=IMPORTANCE, depth="extend.mirror:Mirror")
    plan = growth(LLAMA, target, grow, target_depth=5, seed=1)
    values = weights_of(LLAMA)
    made = applied(plan, LLAMA, values, MAIN_PARAM)
    layers = [0, 1, 1, 0, 0]
    order = [(-values[FC2][layer].norm(dim=0)).argsort().tolist() for layer in range(2)]
    for new, layer in enumerate(layers):
        index = [*range(12), *order[layer], *order[layer][:6]]
        gate, up = values[FC1][layer].chunk(2)
        assert torch.equal(made[FC1][new], torch.cat([gate[index], up[index]]))
        expected = values[FC2][layer][:, index] * shares(index)
        torch.testing.assert_close(made[FC2][new], expected, rtol=1e-12, atol=0)


def test_function_and_gradients() -> None:
    """Autograd's gradients of the grown model are what moments are carried as."""
    target = replace(GPT2, ffn_hidden_size=20)
    plan = growth(GPT2, target, GrowSection(ffn=IMPORTANCE), target_depth=2, seed=1)
    values = weights_of(GPT2)
    plan = plan.answered(partial(answers, values))
    losses, gradients = loss_and_gradients(GPT2, values)
    grown_losses, truth = loss_and_gradients(target, applied(plan, GPT2, values, MAIN_PARAM))
    torch.testing.assert_close(grown_losses, losses, rtol=1e-12, atol=0)
    for key, found in applied(plan, GPT2, gradients, "exp_avg").items():
        torch.testing.assert_close(found, truth[key], rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.parametrize(
    ("before", "after", "depth"), [("2x2", "2x2", None), ("2x2", None, "unshare")]
)
def test_layers_that_share_parameters(before: str, after: str | None, depth: str | None) -> None:
    """Each unique layer has units of its own, its layers the same ones; none by weights of others,
    though answers are of two layers and the model has four."""
    source = replace(GPT2, num_layers=4, layer_sharing=before)
    target = replace(source, ffn_hidden_size=17, layer_sharing=after)
    plan = growth(source, target, GrowSection(ffn=IMPORTANCE, depth=depth), target_depth=4, seed=1)
    values = weights_of(source)
    made, units = applied(plan, source, values, MAIN_PARAM), chosen(values[FC2], 17)
    assert units[0] != units[1]
    for new, old in enumerate([0, 1] if after else [0, 1, 0, 1]):
        assert torch.equal(made[FC1][new], values[FC1][old][units[old]])
        expected = values[FC2][old][:, units[old]] * shares(units[old])
        torch.testing.assert_close(made[FC2][new], expected, rtol=1e-12, atol=0)


def test_noise_beside_it_has_the_power_of_its_own_layer() -> None:
    """Units are drawn layer by layer, columns of hidden units in all layers at once."""
    source = replace(GPT2, hidden_size=64, ffn_hidden_size=96, vocab_size=512)
    target = replace(source, hidden_size=128, ffn_hidden_size=100)
    values = weights_of(source)
    values[FC1][1] *= 3
    width = {"operator": "hypercloning"}
    loud, calm = (
        applied(
            growth(source, target, GrowSection(width=w, ffn=IMPORTANCE), target_depth=2, seed=1),
            source,
            values,
            MAIN_PARAM,
        )[FC1]
        for w in ({**width, "snr_db": 10.0}, width)
    )
    # 6,144 independent values a layer: 4 standard errors of a power are 7 %.
    ratio = (loud - calm).square().mean((1, 2)) / calm.square().mean((1, 2))
    assert ratio.tolist() == pytest.approx([0.1, 0.1], rel=0.07)
