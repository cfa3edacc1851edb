"""Layers that are not all alike: dense ones before those with experts, grown in depth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core import dist_checkpointing

from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import GrowSection, StageSection
from megatron_grow.growth import plan as plans
from megatron_grow.growth.plan import growth
from megatron_grow.inputs.errors import UserError
from megatron_grow.live.stage import LiveStage
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.boxes import full
from megatron_grow.state.fresh import fresh
from megatron_grow.state.tensors import LogicalTensor, Normal
from tests.checkpoint.live import resume, train_to, write
from tests.convert.toy import by_torch, command, equal
from tests.distributed import run_ranks
from tests.growth.test_experts import EXPERTS, FC1, FC2, ROUTER, shared
from tests.state.snapshot import Part, State, assemble, snapshot
from tests.toy import Trace, begin, grow, run_config, train_stage

UNLIKE = replace(EXPERTS, options={"experts": 4, "dense_layers": 1}, num_layers=4)
SMALL = replace(UNLIKE, num_layers=2)
DENSE, QKV = (
    "decoder.layers.mlp.linear_fc1.weight",
    "decoder.layers.self_attention.linear_qkv.weight",
)
NORM = ("weight", "bias")
GROWS, SAVED, ENDS = 2, 4, 5


def run(before: dict[str, Any], after: dict[str, Any]) -> RunConfig:
    return run_config(
        StageSection(until=GROWS, model={"num_layers": 2}, parallel=before),
        StageSection(parallel=after, grow=GrowSection(depth="copying_stack")),
        model=UNLIKE,
        train_iters=ENDS,
        global_batch_size=4,
    )


@dataclass(frozen=True)
class Found:
    """What a rank found."""

    losses: list[float]
    before: list[Part]
    after: list[Part]
    path: Path | None = None
    """Of the checkpoint."""


def train(world_size: int, config: RunConfig, later: dict[str, Any], root: Path) -> Found:
    """On a rank: train, grow, train, save; and go on from there under the layout ``later``."""
    trace, live = Trace(), begin(config, world_size)
    train_stage(live, config, trace)
    before = snapshot(live.pieces())
    live = grow(live, config, world_size)
    after = snapshot(live.pieces())
    losses = trace.losses + train_to(live, config, GROWS, SAVED)
    path = write(live, config, root, SAVED)
    assert loaded_by_megatron(live, path)
    live.release()
    config.stages[1].parallel = later
    live = resume(path, config, world_size)
    losses += train_to(live, config, SAVED, ENDS)
    live.release()
    return Found(losses, before, after)


def loaded_by_megatron(live: LiveStage, path: Path) -> bool:
    """Whether megatron-core's own loader finds in ``path`` what the model computes with."""
    same = []
    for chunk in live.chunks:
        weights = {name: p.detach().clone() for name, p in chunk.module.named_parameters()}
        for parameter in chunk.module.parameters():
            parameter.detach().fill_(torch.nan)
        state = dist_checkpointing.load(chunk.module.sharded_state_dict(), str(path))
        chunk.module.load_state_dict(state, strict=False)  # of extra states there are none
        same += [torch.equal(p, weights[name]) for name, p in chunk.module.named_parameters()]
    return all(same) and bool(same)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Found:
    root, one = tmp_path_factory.mktemp("alone"), shared(1, 1)
    return run_ranks(1, train, 1, run(one, one), one, root)[0]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    root = tmp_path_factory.mktemp("saved") / "ranks"
    config = run(shared(2, 2, 1), shared(1, 2, pp=2))
    found = run_ranks(4, train, 4, config, shared(1, 4), root)
    return [replace(each, path=root / f"iter_{SAVED:07d}") for each in found]


def test_tensors_are_those_of_some_layers() -> None:
    tensors = logical_tensors(UNLIKE)
    assert {key: tensors[key].layers for key in (DENSE, FC1, QKV)} == {
        DENSE: (0,),
        FC1: (1, 2, 3),
        QKV: (0, 1, 2, 3),
    }


def test_training_is_that_of_one_rank(alone: Found, ranks: list[Found]) -> None:
    for found in ranks:
        assert found.losses == pytest.approx(alone.losses, abs=2e-6)
    assert len(alone.losses) == ENDS


def test_layers_are_copied_where_their_source_has_the_tensor(ranks: list[Found]) -> None:
    """Layers 0 1 2 3 come from 0 1 0 1; layer 0 has no experts, so those of layer 2 are fresh."""
    source: State = assemble(logical_tensors(SMALL), [found.before for found in ranks])
    target: State = assemble(logical_tensors(UNLIKE), [found.after for found in ranks])
    tensors = logical_tensors(UNLIKE)
    for kind in ("main_param", "exp_avg", "exp_avg_sq"):
        assert np.array_equal(target[DENSE, kind], source[DENSE, kind])
        assert np.array_equal(target[QKV, kind], source[QKV, kind][[0, 1, 0, 1]])
        for key in (ROUTER, FC1, FC2):
            first, second, third = target[key, kind]
            assert np.array_equal(first, source[key, kind][0])
            assert np.array_equal(third, source[key, kind][0])
            init = tensors[key].init
            assert isinstance(init, Normal)
            drawn = fresh(tensors[key], full(tensors[key].shape), init, 1234)[1].numpy()
            assert np.array_equal(second, drawn if kind == "main_param" else 0 * drawn)


def test_layers_are_stored_as_megatron_core_stores_them(ranks: list[Found], tmp_path: Path) -> None:
    """Each by itself, with its number; also by the converter, for another layout."""
    assert ranks[0].path is not None
    stored = by_torch(ranks[0].path)
    layers = {name for name in stored if name.startswith("decoder.layers.") and "fc1" in name}
    assert layers == {
        "decoder.layers.0.mlp.linear_fc1.weight",
        *(f"decoder.layers.{n}.mlp.experts.experts.linear_fc1.weight" for n in (1, 2, 3)),
        *(f"decoder.layers.{n}.mlp.linear_fc1.layer_norm_{p}" for n in range(4) for p in NORM),
    }
    assert stored["decoder.layers.3.mlp.experts.experts.linear_fc1.weight"].shape == (4, 64, 32)
    assert "optimizer.state.exp_avg.decoder.layers.2.mlp.router.weight" in stored
    layout = ("--tensor-model-parallel-size", 2)
    assert command("reshard", ranks[0].path, tmp_path / "b", *layout) == 0
    assert equal(by_torch(tmp_path / "b" / ranks[0].path.name), stored)


def test_the_legacy_format_has_no_place_for_experts(ranks: list[Found], tmp_path: Path) -> None:
    weights = (ranks[0].path, tmp_path / "b", "--weights-only", "--format", "torch")
    assert command("reshard", *weights) == 2
    assert not (tmp_path / "b").exists()


def test_axes_of_two_sizes_need_two_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators find an axis by its name."""

    def wider(name: str) -> LogicalTensor:
        tensor = logical_tensors(UNLIKE)[name]
        axes = (replace(axis, size=96) if axis.name == "ffn" else axis for axis in tensor.axes)
        return replace(tensor, axes=tuple(axes))

    tensors = {**logical_tensors(UNLIKE), FC1: wider(FC1)}
    monkeypatch.setattr(plans, "logical_tensors", lambda *_: tensors)
    with pytest.raises(ValueError, match="96 entries along ffn, another tensor 64"):
        growth(UNLIKE, UNLIKE, None, target_depth=4, seed=1)


def test_a_mix_of_layers_that_are_not_alike_is_refused() -> None:
    """Between a dense layer and one with experts there is nothing."""
    mix = GrowSection(depth={"operator": "mix"})
    with pytest.raises(UserError, match=r"grow\.depth: decoder\.layers\.mlp.* would be a mix"):
        growth(SMALL, UNLIKE, mix, target_depth=4, seed=1)


def test_a_mix_of_those_that_are_alike() -> None:
    """Of the layer with experts alone, in three places."""
    rows = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.5], [0.0, 2.0]]
    mix = GrowSection(depth={"operator": "mix", "matrix": rows})
    plan = growth(SMALL, UNLIKE, mix, target_depth=4, seed=1)
    layers = plan.weights[FC1].terms[0].axes[0]
    assert torch.equal(layers.matrix, torch.tensor([[1.0], [0.5], [2.0]]).double())  # type: ignore[attr-defined]
