"""Layers that train as one, by a method of a few lines: the slot holds on every layout."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tests.methods.run import BETA1, ONE, Run, runs
from tests.toy import layout

TIED = [{"name": "tests.methods.tied:Tied"}]
CLIP = 0.25
CASES = {
    "free": (TIED, {}),
    "clipped": (TIED, {"optimizer": {"clip_grad": CLIP}}),
}
OVERLAP = {"overlap_grad_reduce": True, "overlap_param_gather": True}
LAYOUTS = {
    "DP4": (4, layout(**OVERLAP)),
    "PP2 DP2": (4, layout(pp=2, **OVERLAP)),
    "PP2 DP2, replicated optimizer": (4, layout(pp=2, use_distributed_optimizer=False)),
}


@pytest.fixture(scope="module")
def one() -> dict[str, Run]:
    return runs(ONE, CASES)


@pytest.mark.parametrize("where", LAYOUTS)
def test_layers_keep_the_same_bits(one: dict[str, Run], where: str) -> None:
    found = runs(LAYOUTS[where], CASES)
    for name, run in found.items():
        for state in run.states:
            for (key, kind), values in state.items():
                if key.startswith("decoder.layers."):
                    assert all(np.array_equal(values[0], other) for other in values), (key, kind)
        assert run.losses == pytest.approx(one[name].losses, rel=1e-5)
        assert run.grad_norms == pytest.approx(one[name].grad_norms, rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_what_layers_share_counts_once(one: dict[str, Run], name: str) -> None:
    """In the norm, and so in clipping: from the first moments before and after each step."""
    run = one[name]
    for (before, after), norm in zip(pairwise(run.states), run.grad_norms, strict=True):
        total = 0.0
        for key, kind in after:
            if kind == "exp_avg":
                moments = (state[key, kind].astype(np.float64) for state in (before, after))
                old, new = (m[:1] if key.startswith("decoder.layers.") else m for m in moments)
                total += np.square((new - BETA1 * old) / (1 - BETA1)).sum()
        clipped = min(norm, CLIP) if name == "clipped" else norm
        assert np.sqrt(total) == pytest.approx(clipped, rel=1e-3)
        assert norm > CLIP
