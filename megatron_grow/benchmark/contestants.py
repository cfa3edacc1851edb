"""What takes training steps, on the same random tokens."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from megatron.core import parallel_state

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection, ScheduleSection, TrainSection
from megatron_grow.config.stages import StageSection
from megatron_grow.growth.filling import fresh, grown
from megatron_grow.growth.plan import Plan, growth, initialisation
from megatron_grow.live.stage import LiveStage
from megatron_grow.methods.base import Context
from megatron_grow.model.architectures import architecture_of
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.parallel import process_groups
from megatron_grow.parametrization.table import run_parametrization
from megatron_grow.train.loop import Loop

OPTIMIZER = OptimizerSection(lr=1e-4)
SCHEDULE = ScheduleSection(lr_warmup_fraction=0.0, lr_decay_style="constant")


def train_section(model: ModelConfig, batch: int, precision: str) -> TrainSection:
    """One micro-batch of ``batch`` full-length sequences a step."""
    return TrainSection(
        train_iters=1_000_000,
        global_batch_size=batch,
        micro_batch_size=batch,
        seq_length=model.max_position_embeddings,
        precision=precision,  # type: ignore[arg-type]
    )


def tokens_of(model: ModelConfig, train: TrainSection) -> torch.Tensor:
    """Random ones, (batch, sequence + 1)."""
    generator = torch.Generator().manual_seed(0)
    shape = (train.global_batch_size, train.seq_length + 1)
    return torch.randint(model.vocabulary, shape, generator=generator)


class MegatronGrow:
    """Trains a model that has its full depth from the start."""

    def __init__(self, model: ModelConfig, train: TrainSection) -> None:
        process_groups.start()
        self.config = self.run_config(model, train)
        self.stages = self.config.resolve(torch.distributed.get_world_size())
        self.live = self.begin()
        self.loop = self._loop(0)

    def run_config(self, model: ModelConfig, train: TrainSection) -> RunConfig:
        """The run to take steps of."""
        return RunConfig(model=model, train=train, optimizer=OPTIMIZER, schedule=SCHEDULE)

    def begin(self) -> LiveStage:
        """The first stage, with values."""
        return fresh(self.stages[0], self.config, self.plan(0))

    def plan(self, index: int) -> Plan:
        """How stage ``index`` begins."""
        stage, depth = self.stages[index], self.config.model.num_layers
        tensors_of = run_parametrization(self.config).tensors
        if index == 0:
            return initialisation(stage.model, depth, 0, tensors_of)
        before = self.stages[index - 1].model
        optimizer = optimizer_of(self.config.optimizer)
        return growth(
            before,
            stage.model,
            stage.grow,
            target_depth=depth,
            seed=0,
            optimizer=optimizer,
            tensors_of=tensors_of,
        )

    def step(self) -> float:
        """Train for a step; seconds."""
        batches = self._micro_batches()
        began = time.perf_counter()
        self.loop.step(batches)
        torch.cuda.synchronize()
        return time.perf_counter() - began

    def _loop(self, steps: int) -> Loop:
        """Over the live stage, of which ``steps`` steps of the run are done."""
        plan = self.plan(self.live.stage.index)
        return Loop(Context(self.config, self.stages, self.live, plan, steps))

    def _micro_batches(self) -> Iterator[dict[str, torch.Tensor]]:
        train = self.config.train
        peers = parallel_state.get_data_parallel_world_size()
        rank = parallel_state.get_data_parallel_rank()
        tokens = tokens_of(self.config.model, train)
        for batch in tokens.split(train.micro_batch_size)[rank::peers]:
            yield dict(architecture_of(self.config.model).example(batch))


class Grown(MegatronGrow):
    """Trains the same model after it has grown from no layers."""

    small_steps = 3

    def __init__(self, model: ModelConfig, train: TrainSection) -> None:
        super().__init__(model, train)
        for _ in range(self.small_steps):
            self.step()
        self.live, _ = grown(self.live, self.stages[1], self.config, self.plan(1))
        self.loop = self._loop(self.small_steps)

    def run_config(self, model: ModelConfig, train: TrainSection) -> RunConfig:
        """From no layers to all."""
        stages = [
            StageSection(until=self.small_steps, model={"num_layers": 0}),
            StageSection(grow=GrowSection(depth="random")),
        ]
        return replace(super().run_config(model, train), stages=stages)


class Transformers:
    """Trains ``transformers``' GPT-2 of the same shape, as a plain loop in PyTorch would."""

    def __init__(
        self,
        model: ModelConfig,
        train: TrainSection,
        weights: Literal["fp32", "bf16"],
        activation: str,
    ) -> None:
        """With fp32 ``weights`` and ``train.precision`` bf16, torch's autocast decides types."""
        from transformers import GPT2Config, GPT2LMHeadModel

        warnings.filterwarnings("ignore")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=model.vocabulary,
            n_positions=model.max_position_embeddings,
            n_embd=model.hidden_size,
            n_layer=model.num_layers,
            n_head=model.num_attention_heads,
            n_inner=model.ffn_size,
            resid_pdrop=model.hidden_dropout,
            embd_pdrop=model.hidden_dropout,
            attn_pdrop=model.attention_dropout,
            activation_function=activation,
            attn_implementation="sdpa",  # type: ignore[call-arg]
            use_cache=False,
        )
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[weights]
        self.model = GPT2LMHeadModel(config).to(self.device, dtype)  # type: ignore[arg-type]
        self.autocast = train.precision == "bf16" and weights == "fp32"
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=OPTIMIZER.lr,
            betas=(OPTIMIZER.adam_beta1, OPTIMIZER.adam_beta2),
            eps=OPTIMIZER.adam_eps,
            weight_decay=OPTIMIZER.weight_decay,
            fused=True,
        )
        self.tokens = tokens_of(model, train).to(self.device)

    def step(self) -> float:
        """Train for a step; seconds."""
        labels = self.tokens[:, 1:].contiguous()
        began = time.perf_counter()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            loss = self.model(self.tokens[:, :-1], labels=labels, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMIZER.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began
