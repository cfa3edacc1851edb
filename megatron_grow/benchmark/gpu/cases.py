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
_BERT = {**_GPT2, "architecture": "bert", "activation": "gelu", "options": {"norm_position": "pre"}}
_SHAPE = {"vocab_size": 512, "max_position_embeddings": 64}
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SAVES = {"save_interval": 15, "load": "auto"}


@dataclass(frozen=True)
class Corpora:
    """What the cases read: one text twice, and its tokens by name for what masks some."""

    documents: str
    sentences: str
    vocabulary: str

    def section(self, masked: bool) -> dict[str, Any]:
        """Of the run file."""
        prefix = self.sentences if masked else self.documents
        paths = {"train_data_path": [prefix], "valid_data_path": [prefix], "num_workers": 1}
        return paths | ({"tokenizer": self.vocabulary} if masked else {})


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
    whole_layers: bool = False
    """And with whole layers compiled, on the GPU."""

    def run(self, output_dir: Path, corpora: Corpora, on_gpu: bool) -> dict[str, Any]:
        """The run file."""
        slow = {kernel.name: False for kernel in fields(KernelsSection)}
        fast = {"layers": True} if self.whole_layers and on_gpu else {}
        masked = self.model.get("architecture") == "bert"
        return {
            "kernels": fast if self.fast else slow,
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
            "data": corpora.section(masked),
            "checkpoint": _SAVES,
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
    "1 layer to 4, whole layers compiled": Case(
        _LLAMA, {"num_layers": 1}, {"depth": "copying_stack"}, fast=True, whole_layers=True
    ),
    "1 layer to 4, BERT": Case(_BERT, {"num_layers": 1}, {"depth": "copying_stack"}),
    "1 layer to 4, asynchronous saves": Case(
        _GPT2,
        {"num_layers": 1},
        {"depth": "copying_stack"},
        sections={"checkpoint": {**_SAVES, "async_save": True}},
    ),
}


RESUMED = {
    "resumed": "1 layer to 4, adam",
    "resumed from an asynchronous save": "1 layer to 4, asynchronous saves",
}
"""Those that go on from a checkpoint besides."""


def write_corpora(directory: Path) -> Corpora:
    """Write a text that can be learned: each token follows from the one before it, in one of two
    ways."""
    generator, words = np.random.default_rng(0), _SHAPE["vocab_size"] - len(_SPECIAL)
    documents = []
    for _ in range(20):
        document = [int(generator.integers(words))]
        for way in generator.integers(2, size=999):
            document.append((document[-1] * (5, 3)[way] + 7) % words)
        documents.append(torch.tensor(document) + len(_SPECIAL))
    vocabulary = directory / "vocab.txt"
    vocabulary.write_text("\n".join([*_SPECIAL, *(f"w{i}" for i in range(words))]) + "\n")
    return Corpora(
        _write(directory / "documents", documents, 1000),
        _write(directory / "sentences", documents, 20),
        str(vocabulary),
    )


def _write(prefix: Path, documents: list[torch.Tensor], length: int) -> str:
    """Documents in sequences of ``length`` tokens."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for document in documents:
        builder.add_document(document, [length] * (len(document) // length))
    builder.finalize(f"{prefix}.idx")
    return str(prefix)


def write_run(case: Case, directory: Path, corpora: Corpora, on_gpu: bool) -> Path:
    """Write the run file of ``case``, whose output goes to ``directory``."""
    path = directory.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(case.run(directory, corpora, on_gpu), sort_keys=False))
    return path
