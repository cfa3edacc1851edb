"""Small runs that a GPU must train as a CPU does."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from megatron_grow.config.kernels import KernelsSection

STEPS, GROWTH = 20, 10

_GPT2 = {"num_layers": 4, "hidden_size": 64, "num_attention_heads": 4, "activation": "gelu_tanh"}
_LLAMA = {
    **_GPT2,
    "num_query_groups": 2,
    "ffn_hidden_size": 176,
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
    "activation": "swiglu",
    "add_bias_linear": False,
    "share_embeddings_and_output_weights": False,
}
_SHAPE = {"vocab_size": 512, "max_position_embeddings": 64}


@dataclass(frozen=True)
class Case:
    """A run, and what must hold of it."""

    model: dict[str, Any]
    small: dict[str, Any]
    """What its first stage has otherwise."""
    grow: dict[str, Any]
    preserves: bool = False
    """Whether the growth keeps the function."""
    precision: str = "fp32"
    tolerance: float = 1e-4
    """How far a loss or a gradient norm may be from the CPU's, of the CPU's."""
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Others of the run file."""
    fast: bool = False
    """With the kernels that a GPU uses where nobody says otherwise; else with the CPU's."""

    def run(self, output_dir: Path, corpus: str) -> dict[str, Any]:
        """The run file."""
        slow = {kernel.name: False for kernel in fields(KernelsSection)}
        return {
            "kernels": {} if self.fast else slow,
            "run": {"output_dir": str(output_dir)},
            "model": _SHAPE | self.model,
            "train": {
                "train_iters": STEPS,
                "global_batch_size": 8,
                "micro_batch_size": 4,
                "seq_length": 64,
                "precision": self.precision,
                "log_interval": 1,
                "layers_interval": 5,
                "eval_interval": GROWTH,
                "eval_iters": 1,
            },
            "optimizer": {"lr": 1e-3},
            "schedule": {"lr_decay_style": "constant"},
            "data": {"train_data_path": [corpus], "valid_data_path": [corpus], "num_workers": 1},
            "checkpoint": {"save_interval": 15, "load": "auto"},
            "logging": {"tensorboard": False, "progress_bar": False},
            "stages": [{"until": GROWTH, "model": self.small}, {"grow": self.grow}],
            **self.sections,
        }


_WIDER = {"hidden_size": 32, "num_attention_heads": 2, "ffn_hidden_size": 128}
CASES = {
    "no layer to 4, adam": Case(_GPT2, {"num_layers": 0}, {"depth": "random"}),
    "1 layer to 4, adam": Case(_LLAMA, {"num_layers": 1}, {"depth": "copying_stack"}),
    "1 layer to 4, muon": Case(
        _GPT2,
        {"num_layers": 1},
        {"depth": "copying_stack"},
        sections={"optimizer": {"optimizer": "muon", "lr": 1e-3}},
    ),
    "1 layer to 4, completep": Case(
        _GPT2,
        {"num_layers": 1},
        {"depth": "copying_stack"},
        sections={"parametrization": {"name": "completep", "base": {"hidden_size": 32}}},
    ),
    "layers that are one, then 4": Case(
        _LLAMA, {"layer_sharing": "1x4"}, {"depth": "unshare"}, preserves=True
    ),
    "zero layers, function kept": Case(
        _GPT2, {"num_layers": 2}, {"depth": "copying_zero"}, preserves=True
    ),
    "wider, function kept": Case(
        _GPT2,
        _WIDER,
        {"width": "hypercloning", "heads": "hypercloning", "ffn": "hypercloning"},
        preserves=True,
    ),
    "1 layer to 4, fast kernels": Case(
        _LLAMA, {"num_layers": 1}, {"depth": "copying_stack"}, fast=True
    ),
    # A bf16 number has 8 bits: sums in another order differ by more than in fp32.
    "1 layer to 4, bf16": Case(
        _LLAMA,
        {"num_layers": 1},
        {"depth": "copying_stack"},
        precision="bf16",
        tolerance=2e-2,
        fast=True,
    ),
}


RESUMED = "1 layer to 4, adam"
"""The one that goes on from a checkpoint besides."""


def write_corpus(directory: Path) -> str:
    """Write a corpus that can be learned; its prefix.

    Each token follows from the one before it, in one of two ways.
    """
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    generator = np.random.default_rng(0)
    prefix = str(directory / "tokens")
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for _ in range(20):
        document = [int(generator.integers(512))]
        for way in generator.integers(2, size=1000):
            document.append((document[-1] * (5, 3)[way] + 7) % 512)
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(f"{prefix}.idx")
    return prefix


def write_run(case: Case, directory: Path, corpus: str) -> Path:
    """Write the run file of ``case``, whose output goes to ``directory``."""
    path = directory.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(case.run(directory, corpus), sort_keys=False))
    return path
