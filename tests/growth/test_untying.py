"""A head that is tied before a growth and has weights of its own after it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_grow.checkpoint.torch_dist.reader import TorchDistReader
from megatron_grow.config.grow import GrowSection, check_growth
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.growth.at_load import load
from megatron_grow.growth.offline import GrownReader
from megatron_grow.growth.plan import growth
from megatron_grow.inputs.errors import UserError
from megatron_grow.live.stage import filled
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.model.gpt.tensors import EMBEDDING, HEAD
from megatron_grow.state.boxes import full
from tests.checkpoint.live import write
from tests.distributed import run_ranks
from tests.growth.algebra import GPT2, applied, loss_and_gradients, weights_of
from tests.logits import agreed, logits
from tests.state.snapshot import Part, State, assemble, snapshot
from tests.toy import TIED, Trace, begin, grow, layout, run_config, train_stage

UNTIED = replace(TIED, share_embeddings_and_output_weights=False)
STEPS = 2
PP2, TP2 = layout(pp=2), layout(tp=2)


def run(after: dict) -> RunConfig:
    """From a pipeline, whose last rank has a copy of the embedding."""
    return run_config(
        StageSection(
            until=STEPS, model={"share_embeddings_and_output_weights": True}, parallel=PP2
        ),
        StageSection(parallel=after),
        model=UNTIED,
        train_iters=2 * STEPS,
        global_batch_size=4,
    )


@dataclass
class Found:
    source: list[Part]
    target: list[Part]
    loaded: list[Part]
    trained: list[Part]
    offline: dict[str, np.ndarray]
    before: np.ndarray | None
    after: np.ndarray | None


def untie(after: dict, root: str) -> Found:
    config = run(after)
    live = begin(config, 2)
    train_stage(live, config, Trace())
    source, before = snapshot(live.pieces()), logits(live)
    path = write(live, config, Path(root), STEPS)
    live = grow(live, config, 2)
    target, grown_logits = snapshot(live.pieces()), logits(live)
    train_stage(live, config, Trace())
    trained = snapshot(live.pieces())
    live.release()
    stage = config.resolve(2)[1]
    plan = growth(TIED, UNTIED, None, target_depth=UNTIED.num_layers, seed=config.run.seed)
    live = filled(stage, config, plan.tensors, partial(load, plan, TorchDistReader(path)), 0)
    loaded = snapshot(live.pieces())
    live.release()
    stored = GrownReader(TorchDistReader(path), plan, UNTIED, GrowSection())
    whole = full(plan.tensors[HEAD].shape)
    offline = {kind: stored.read(HEAD, kind, whole).numpy() for kind in stored.kinds(HEAD)}
    return Found(source, target, loaded, trained, offline, before, grown_logits)


def whole(ranks: list[Found], what: str) -> State:
    model = TIED if what == "source" else UNTIED
    return assemble(logical_tensors(model), [getattr(rank, what) for rank in ranks])


@pytest.mark.parametrize("after", [PP2, TP2], ids=["PP2", "TP2"])
def test_the_head_begins_as_the_embedding(after: dict) -> None:
    """Weights and moments, in memory, at load and offline; then the two learn apart."""
    with tempfile.TemporaryDirectory() as root:
        ranks = run_ranks(2, untie, after, root)
    source, target, loaded = (whole(ranks, what) for what in ("source", "target", "loaded"))
    for kind in ("main_param", "exp_avg", "exp_avg_sq"):
        assert source[EMBEDDING, kind].any()
        for key in (EMBEDDING, HEAD):
            assert np.array_equal(target[key, kind], source[EMBEDDING, kind]), (key, kind)
        assert np.array_equal(ranks[0].offline[kind], source[EMBEDDING, kind])
    assert all(np.array_equal(loaded[key], values) for key, values in target.items())
    before, grown = (agreed(getattr(rank, side) for rank in ranks) for side in ("before", "after"))
    difference = np.abs(grown - before).max()
    assert difference == 0.0 if after is PP2 else difference < 1e-5 * np.abs(before).max()
    trained = whole(ranks, "trained")
    apart = trained[HEAD, "main_param"] - trained[EMBEDDING, "main_param"]
    assert np.abs(apart).max() > 1e-3


def test_the_moments_of_each_are_those_of_the_sum() -> None:
    """The tied gradient is the sum of two, which moments cannot tell apart."""
    target = replace(GPT2, share_embeddings_and_output_weights=False)
    weights = weights_of(GPT2)
    _, tied = loss_and_gradients(GPT2, weights)
    for policy, head in (("carry", tied[EMBEDDING]), ("carry_old", 0 * tied[EMBEDDING])):
        section = GrowSection(optimizer_state=policy)
        plan = growth(GPT2, target, section, target_depth=2, seed=1)
        assert plan.caveats == ()
        assert plan.summary.endswith("the head, no longer tied, begins as the embedding")
        _, apart = loss_and_gradients(target, applied(plan, GPT2, weights, "main_param"))
        assert torch.allclose(apart[EMBEDDING] + apart[HEAD], tied[EMBEDDING], rtol=1e-10)
        carried = applied(plan, GPT2, tied, "exp_avg")
        assert torch.equal(carried[EMBEDDING], tied[EMBEDDING])
        assert torch.equal(carried[HEAD], head)


def test_no_growth_ties_a_head() -> None:
    with pytest.raises(UserError, match="share_embeddings_and_output_weights=True differs"):
        check_growth(UNTIED, TIED, None, "stages[1]")
    check_growth(TIED, UNTIED, None, "stages[1]")
