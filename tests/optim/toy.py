"""A toy GPT on any layout, trained for a few steps on random tokens, its state then collected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import OptimizerSection, TrainSection
from megatron_grow.growth.in_memory import transfer
from megatron_grow.growth.plan import initialisation
from megatron_grow.live.data_parallel import wrap_data_parallel
from megatron_grow.live.pieces import live_pieces, publish
from megatron_grow.model.gpt.build import build_gpt
from megatron_grow.optim.builder import build_optimizer
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.parallel import process_groups

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
    chunk: DistributedDataParallel
    optimizer: MegatronOptimizer

    def step(self, number: int) -> tuple[float, float]:
        """Train on batch ``number``; the loss of the last pipeline stage and the gradient norm."""
        self.chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        loss = self._forward_backward(number)
        _, grad_norm, _ = self.optimizer.step()
        if self.chunk.ddp_config.use_distributed_optimizer:
            self.chunk.start_param_sync(force_sync=True)
        return loss, grad_norm

    def state(self) -> dict[tuple[str, str], list[tuple[tuple, np.ndarray]]]:
        """Boxes of weights and moments that this rank holds, by (key, kind)."""
        pieces: dict = {}
        tensors = initialisation(self.model, self.model.num_layers, SEED).tensors
        for piece in live_pieces([self.chunk], self.optimizer, tensors):
            boxes = pieces.setdefault((piece.key, piece.kind), [])
            boxes.append((piece.box, piece.data.float().numpy().copy()))
        return pieces

    def _forward_backward(self, number: int) -> float:
        from megatron.core import parallel_state

        peers = parallel_state.get_data_parallel_world_size()
        rank = parallel_state.get_data_parallel_rank()
        generator = torch.Generator().manual_seed(number)
        shape = (BATCH, SEQ_LENGTH + 1)
        tokens = torch.randint(self.model.vocab_size, shape, generator=generator)
        self.chunk.config.finalize_model_grads_func = finalize_model_grads
        losses = get_forward_backward_func()(
            forward_step_func=_forward_step,
            data_iterator=iter(tokens[rank::peers].split(1)),
            model=[self.chunk],
            num_microbatches=BATCH // peers,
            seq_length=SEQ_LENGTH,
            micro_batch_size=1,
            forward_only=False,
        )
        return float(sum(losses) / len(losses)) if losses else float("nan")


def _forward_step(data: object, model: torch.nn.Module) -> tuple[torch.Tensor, object]:
    sequence = next(data)  # type: ignore[call-overload]
    positions = torch.arange(SEQ_LENGTH).expand(1, -1)
    output = model(sequence[:, :-1], positions, None, labels=sequence[:, 1:])

    def loss(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = values.float().mean()
        return mean, mean.detach()

    return output, loss


def build(
    section: OptimizerSection,
    layout: ParallelConfig | None = None,
    model: ModelConfig | None = None,
    precision: str = "fp32",
) -> Toy:
    """Set up ``layout`` and build the toy with the same weights on every layout."""
    layout, model = layout or ParallelConfig(), model or gpt()
    process_groups.set_up(layout, SEED)
    train = TrainSection(seq_length=SEQ_LENGTH, precision=precision)  # type: ignore[arg-type]
    sharded = layout.use_distributed_optimizer and optimizer_of(section).shards
    [chunk] = wrap_data_parallel(build_gpt(model, layout, train), layout, sharded)
    optimizer = build_optimizer(
        [chunk], section, precision=precision, use_distributed_optimizer=sharded
    )
    plan = initialisation(model, model.num_layers, SEED)
    transfer(plan, [], live_pieces([chunk], optimizer, plan.tensors))
    publish([chunk], optimizer)
    return Toy(model, chunk, optimizer)


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
