"""What makes the copies of a unit learn apart after a growth, and how fast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch

from megatron_grow.benchmark.gang import Gang
from megatron_grow.benchmark.report import Report
from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection, ScheduleSection, TrainSection
from megatron_grow.config.stages import StageSection
from megatron_grow.growth.filling import fresh, grown
from megatron_grow.growth.plan import Plan, growth, initialisation
from megatron_grow.live.stage import LiveStage
from megatron_grow.methods.base import Context
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.parallel import process_groups
from megatron_grow.state.axis_map import FRESH
from megatron_grow.state.axis_maps import Gather
from megatron_grow.state.boxes import slices
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.train.loop import Loop

_VOCABULARY = 128
SMALL = ModelConfig(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    kv_channels=8,
    ffn_hidden_size=64,
    vocab_size=_VOCABULARY,
    max_position_embeddings=32,
)
BEFORE = 50
"""Steps before the growth."""
STEPS = (15, 150)
"""After it."""
# By key of `grow`: what doubles, and a tensor and axis whose entries produce the units.
DOUBLED: dict[str, tuple[dict[str, int], str, str]] = {
    "ffn": ({"ffn_hidden_size": 128}, "decoder.layers.mlp.linear_fc1.weight", "ffn"),
    "heads": (
        {"num_attention_heads": 8},
        "decoder.layers.self_attention.linear_qkv.weight",
        "kv_group",
    ),
    "width": ({"hidden_size": 64}, "embedding.word_embeddings.weight", "hidden"),
}


@dataclass(frozen=True)
class Variant:
    """A way to make copies, and to train them."""

    operator: dict[str, Any]
    optimizer_state: str = "carry"
    optimizer: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


_EVEN = {"operator": "fpi", "map": "cyclic"}
VARIANTS = {
    "even shares": Variant(_EVEN),
    "a random map": Variant({"operator": "fpi", "map": "random"}),
    "reset": Variant(_EVEN, "reset"),
    "carry_old": Variant(_EVEN, "carry_old"),
    "weight decay of 1": Variant(_EVEN, optimizer={"weight_decay": 1.0}),
    "Muon": Variant(_EVEN, optimizer={"optimizer": "muon"}),
    "dropout of 0.1": Variant(_EVEN, model={"hidden_dropout": 0.1, "attention_dropout": 0.1}),
    "lemon, split 0.6": Variant({"operator": "lemon", "split": 0.6}),
    "lemon, split 0.9": Variant({"operator": "lemon", "split": 0.9}),
    "lemon, split random": Variant({"operator": "lemon", "split": "random"}),
    "hypercloning, 20 dB": Variant({"operator": "hypercloning", "snr_db": 20}),
    "hypercloning, 10 dB": Variant({"operator": "hypercloning", "snr_db": 10}),
}


def measure() -> Report:
    """Train every variant, and double each kind of unit."""
    with Gang(Copies) as gang:
        found = {
            name: {key: gang.call("apart", variant, key)[0] for key in DOUBLED}
            for name, variant in VARIANTS.items()
        }
    columns = [f"{key} {step}" for key in DOUBLED for step in STEPS]
    rows = [
        [name, *(f"{distance:.2g}" for key in DOUBLED for distance in distances[key])]
        for name, distances in found.items()
    ]
    title = "How far copies of units are apart after some steps, relative to their weights"
    return Report(title, ["", *columns], rows, found)


class Copies:
    """Doubles a small model and trains it."""

    def __init__(self) -> None:
        process_groups.start()

    def apart(self, variant: Variant, key: str) -> list[float]:
        """Distance of copies after each of :data:`STEPS`, relative to the size of the first."""
        doubled, tensor, axis = DOUBLED[key]
        model = replace(SMALL, **variant.model)
        said: dict[str, Any] = {key: variant.operator, "optimizer_state": variant.optimizer_state}
        config = RunConfig(
            model=replace(model, **doubled),  # type: ignore[arg-type]
            train=TrainSection(
                train_iters=BEFORE + max(STEPS),
                global_batch_size=8,
                micro_batch_size=8,
                seq_length=model.max_position_embeddings,
            ),
            optimizer=OptimizerSection(**{"lr": 1e-3, **variant.optimizer}),
            schedule=ScheduleSection(lr_warmup_fraction=0.0, lr_decay_style="constant"),
            stages=[
                StageSection(until=BEFORE, model={k: getattr(model, k) for k in doubled}),
                StageSection(grow=GrowSection(**said)),
            ],
        )
        small, large = stages = config.resolve(1)
        plan = initialisation(small.model, model.num_layers, seed=0)
        live = fresh(small, config, plan)
        for _ in Loop(Context(config, stages, live, plan, 0)).steps(_batches(config.train, 0)):
            pass
        plan = growth(
            small.model,
            large.model,
            large.grow,
            target_depth=2,
            seed=0,
            optimizer=optimizer_of(config.optimizer),
        )
        live, _ = grown(live, large, config, plan)
        loop = Loop(Context(config, stages, live, plan, BEFORE))
        steps = loop.steps(_batches(config.train, BEFORE))
        distances = [
            _distance(live, plan, tensor, axis) for ctx in steps if ctx.step - BEFORE in STEPS
        ]
        live.release()
        return distances


def _batches(train: TrainSection, first: int) -> Iterator[dict[str, torch.Tensor]]:
    """Sequences in which a token mostly decides the next."""
    length = train.seq_length
    for step in count(first):
        generator = torch.Generator().manual_seed(step)
        shape = (train.global_batch_size, length + 1)
        jumps = torch.randint(1, 4, shape, generator=generator)
        tokens = (jumps.cumsum(1) * 7) % _VOCABULARY
        yield {
            "tokens": tokens[:, :-1],
            "labels": tokens[:, 1:],
            "position_ids": torch.arange(length).expand(len(tokens), -1),
            "loss_mask": torch.ones(len(tokens), length),
        }


def _distance(live: LiveStage, plan: Plan, key: str, axis: str) -> float:
    """Root mean square of copies less the units that they copy, over that of these units."""
    tensor = plan.tensors[key]
    values = torch.zeros(tensor.shape)
    for piece in live.pieces():
        if (piece.key, piece.kind) == (key, MAIN_PARAM):
            values[slices(piece.box)] = piece.data
    place = tensor.axis(axis)
    units = plan.weights[key].terms[0].axes[place]
    assert isinstance(units, Gather)
    first = [units.index.index(source) for source in units.index]
    copies = [i for i, original in enumerate(first) if i != original and units.index[i] != FRESH]
    originals = values.index_select(place, torch.tensor([first[i] for i in copies]))
    difference = values.index_select(place, torch.tensor(copies)) - originals
    return float(difference.square().mean().sqrt() / originals.square().mean().sqrt())
