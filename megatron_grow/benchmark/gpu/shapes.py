"""The models that are measured, at full size and at a size for a test on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from megatron_grow.benchmark.gpu.cases import CASES, RESUMED
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.sections import TrainSection


@dataclass(frozen=True)
class Attempt:
    """A way to run a step that may not fit in memory."""

    micro_batch_size: int
    recompute: bool = False


@dataclass(frozen=True)
class Shape:
    """A model, and how it may be run."""

    name: str
    model: ModelConfig
    attempts: tuple[Attempt, ...]
    """In order of speed; the first that fits is measured."""

    def train(self, attempt: Attempt) -> TrainSection:
        """A step of one micro-batch in bf16."""
        return TrainSection(
            train_iters=1_000_000,
            global_batch_size=attempt.micro_batch_size,
            micro_batch_size=attempt.micro_batch_size,
            seq_length=self.model.max_position_embeddings,
            precision="bf16",
            recompute_granularity="full" if attempt.recompute else None,
        )


@dataclass(frozen=True)
class Sizes:
    """What one run of the benchmark measures."""

    gpt2: Shape
    llama: Shape
    large: Shape
    """Too large for one GPU: some of its layers are measured."""
    repetitions: int
    """Measured steps."""
    cases: tuple[str, ...]
    """Of :data:`.CASES`, to compare with a CPU."""


_GPT2 = ModelConfig(vocab_size=50257, activation="gelu_tanh")  # as examples/gpt2_124m
_LLAMA = ModelConfig(
    num_layers=24,
    hidden_size=2048,
    num_attention_heads=16,
    ffn_hidden_size=5504,
    vocab_size=50257,
    max_position_embeddings=2048,
    position_embedding_type="rope",
    normalization="RMSNorm",
    activation="swiglu",
    add_bias_linear=False,
    share_embeddings_and_output_weights=False,
)
_LARGE = ModelConfig(  # as examples/gpt2_7b
    num_layers=60,
    hidden_size=3072,
    num_attention_heads=24,
    vocab_size=50257,
    add_bias_linear=False,
)
_TOY: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "vocab_size": 257,
    "num_layers": 3,
}

SIZES = {
    "full": Sizes(
        gpt2=Shape("124M", _GPT2, (Attempt(32), Attempt(16), Attempt(8))),
        llama=Shape("1.3B", _LLAMA, (Attempt(4), Attempt(2), Attempt(4, recompute=True))),
        large=Shape("7B", _LARGE, (Attempt(8, recompute=True), Attempt(2, recompute=True))),
        repetitions=10,
        cases=tuple(CASES),
    ),
    "toy": Sizes(
        gpt2=Shape("124M", replace(_GPT2, **_TOY, max_position_embeddings=16), (Attempt(2),)),
        llama=Shape(
            "1.3B",
            replace(_LLAMA, **_TOY, ffn_hidden_size=48, max_position_embeddings=16),
            (Attempt(2), Attempt(2, recompute=True)),
        ),
        large=Shape(
            "7B", replace(_LARGE, **_TOY, max_position_embeddings=16), (Attempt(2, recompute=True),)
        ),
        repetitions=1,
        cases=(RESUMED["resumed"], "1 layer to 4, BERT"),
    ),
}
