"""Checkpoints of any shape without training, for tests and benchmarks: all state is random."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from megatron_grow.checkpoint.formats import DEFAULT, FORMATS
from megatron_grow.checkpoint.layout import DTYPES, step_dir
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.record import Record
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection, TrainSection
from megatron_grow.convert.conversion import convert
from megatron_grow.convert.progress import Progress
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.state.boxes import Box
from megatron_grow.state.fresh import fresh
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.tensors import Normal


class SyntheticReader(Reader):
    """A source whose values are a function of their place."""

    path = Path("synthetic")
    format = "synthetic"
    layout = "any"

    def __init__(
        self,
        model: ModelConfig,
        *,
        optimizer: str | None = "adam",
        precision: str = "fp32",
        step: int = 10,
    ) -> None:
        """Nothing is made yet.

        Args:
            model: the shape.
            optimizer: whose state there is, as a run file names it; None: weights alone.
            precision: of weights.
            step: where training stands.
        """
        section = OptimizerSection(optimizer=optimizer or "adam")
        self.record = Record(
            step=step,
            stage=0,
            consumed_samples=8 * step,
            consumed_tokens=8 * step * model.max_position_embeddings,
            optimizer_step=step if optimizer else 0,
            model=asdict(model),
            precision=precision,
            config=asdict(
                RunConfig(
                    model=model,
                    train=TrainSection(
                        seq_length=model.max_position_embeddings,
                        precision="bf16" if precision == "bf16" else "fp32",
                    ),
                    optimizer=section,
                )
            ),
            parallel=asdict(ParallelConfig()),
        )
        self.tensors = logical_tensors(model)
        self.keeps_main = optimizer is not None
        self._optimizer = optimizer_of(section)

    def kinds(self, key: str) -> tuple[str, ...]:
        """``main_param`` and the moments of one tensor."""
        states = self._optimizer.rule(self.tensors[key]).states
        return (MAIN_PARAM, *(states if self.keeps_main else ()))

    def dtype(self, key: str, kind: str) -> torch.dtype:
        """Of the values."""
        return torch.float32 if self.keeps_main else DTYPES[self.record.precision]

    def read(self, key: str, kind: str, box: Box) -> torch.Tensor:
        """The values in ``box``: normal, of a standard deviation of 0.02."""
        named = replace(self.tensors[key], key=f"{key} {kind}")
        return fresh(named, box, Normal(0.02), 7).to(self.dtype(key, kind))


def write(root: Path, source: SyntheticReader, tensor_parallel: int = 1, threads: int = 2) -> Path:
    """Write a source as the checkpoint of its step, as runs do; its directory."""
    final, made = step_dir(root, source.record.step), FORMATS.make(DEFAULT, "format")
    layout = ParallelConfig(tensor_model_parallel_size=tensor_parallel)
    record = replace(source.record, parallel=asdict(layout))
    convert(
        source,
        final,
        lambda directory: made.writer(directory, source, record),
        step=source.record.step,
        finite=False,  # as a run could have written it
        threads=threads,
        verifies=False,
        progress=Progress(False),
    )
    return final
