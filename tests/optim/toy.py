"""A toy GPT on any layout, trained for a few steps on random tokens, its state then collected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import (
    OptimizerSection,
    ParametrizationSection,
    RunSection,
    ScheduleSection,
    TrainSection,
)
from megatron_grow.config.stages import StageSection
from megatron_grow.parametrization.table import parametrized
from megatron_grow.train.loop import Loop
from tests.toy import begin, loop_over

BATCH, SEQ_LENGTH, SEED = 4, 16, 5


def gpt(**changes: object) -> ModelConfig:
    """Grouped queries, a gate, biases: whatever an update rule might get wrong."""
    shape = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "ffn_hidden_size": 48,
        "vocab_size": 120,  # padded to 144 rows on one rank, to 192 on two
        "make_vocab_size_divisible_by": 48,
        "max_position_embeddings": SEQ_LENGTH,
        "activation": "swiglu",
    }
    return ModelConfig(**(shape | changes))  # type: ignore[arg-type]


@dataclass
class Toy:
    """A model and its optimizer on the current layout."""

    model: ModelConfig
    loop: Loop

    @property
    def chunk(self) -> DistributedDataParallel:
        [chunk] = self.loop.ctx.live.chunks
        return chunk

    @property
    def optimizer(self) -> ChainedOptimizer:
        return self.loop.ctx.live.optimizer

    def step(self, number: int) -> tuple[float, float]:
        """Train on batch ``number``; the loss and the gradient norm."""
        self.loop.step(self._micro_batches(number))
        return self.loop.ctx.mean_loss(), self.loop.ctx.grad_norm

    def state(self) -> dict[tuple[str, str], list[tuple[tuple, np.ndarray]]]:
        """Boxes of weights and moments that this rank holds, by (key, kind)."""
        pieces: dict = {}
        for piece in self.loop.ctx.live.pieces():
            boxes = pieces.setdefault((piece.key, piece.kind), [])
            boxes.append((piece.box, piece.data.float().numpy().copy()))
        return pieces

    def _micro_batches(self, number: int) -> Iterator[dict[str, torch.Tensor]]:
        peers = parallel_state.get_data_parallel_world_size()
        rank = parallel_state.get_data_parallel_rank()
        generator = torch.Generator().manual_seed(number)
        shape = (BATCH, SEQ_LENGTH + 1)
        tokens = torch.randint(self.model.vocab_size, shape, generator=generator)
        for sequence in tokens[rank::peers].split(1):
            yield {
                "tokens": sequence[:, :-1],
                "labels": sequence[:, 1:],
                "position_ids": torch.arange(SEQ_LENGTH)[None],
                "loss_mask": torch.ones(1, SEQ_LENGTH),
            }


def build(
    section: OptimizerSection,
    layout: ParallelConfig | None = None,
    model: ModelConfig | None = None,
    precision: str = "fp32",
    parametrization: ParametrizationSection | None = None,
) -> Toy:
    """Set up ``layout`` and build the toy with the same weights on every layout."""
    config = RunConfig(
        run=RunSection(seed=SEED),
        model=model or gpt(),
        train=TrainSection(
            global_batch_size=BATCH,
            micro_batch_size=1,
            seq_length=SEQ_LENGTH,
            precision=precision,  # type: ignore[arg-type]
        ),
        optimizer=section,
        parametrization=parametrization or ParametrizationSection(),
        schedule=ScheduleSection(lr_warmup_fraction=0.0, lr_decay_style="constant"),
        stages=[StageSection(parallel=asdict(layout or ParallelConfig()))],
    )
    config = parametrized(config)
    return Toy(config.model, loop_over(begin(config, dist.get_world_size()), config))


def train_each(
    sections: list[tuple[OptimizerSection, ParametrizationSection]], layout: ParallelConfig
) -> list[tuple[list[tuple[float, float]], dict]]:
    """On one rank, one after the other: what :func:`train` finds of each."""
    found = []
    for section, parametrization in sections:
        toy = build(section, layout, parametrization=parametrization)
        found.append(([toy.step(number) for number in range(4)], toy.state()))
        toy.loop.ctx.live.release()
    return found


def train(
    section: OptimizerSection,
    layout: ParallelConfig,
    model: ModelConfig | None = None,
    steps: int = 4,
    precision: str = "fp32",
) -> tuple[list[tuple[float, float]], dict]:
    """On one rank: losses and gradient norms of some steps, and the state after them."""
    toy = build(section, layout, model, precision)
    return [toy.step(number) for number in range(steps)], toy.state()


def whole(ranks: list[dict]) -> dict[tuple[str, str], np.ndarray]:
    """Put the boxes of all ranks together; replicas must be equal, bit for bit."""
    tensors: dict[tuple[str, str], np.ndarray] = {}
    for key in {key for rank in ranks for key in rank}:
        boxes = [entry for rank in ranks for entry in rank.get(key, [])]
        shape = [max(box[i][1] for box, _ in boxes) for i in range(len(boxes[0][0]))]
        tensor = np.full(shape, np.nan, dtype=np.float32)
        for box, values in boxes:
            place = tensor[tuple(slice(a, b) for a, b in box)]
            known = ~np.isnan(place)
            assert np.array_equal(place[known], values[known]), f"replicas of {key} differ"
            place[...] = values
        assert not np.isnan(tensor).any(), f"nobody holds part of {key}"
        tensors[key] = tensor
    return tensors
