"""Data to rehearse with: the run's own where they are, else a corpus of zeros."""

from __future__ import annotations

from pathlib import Path

import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder, get_bin_path

from megatron_grow.config.run import RunConfig
from megatron_grow.data.tokenizers.vocabulary import with_vocabulary
from megatron_grow.inputs.errors import UserError

_SAMPLES = 64
"""In the corpus of zeros, which has no end: epochs follow on each other."""


def options(config: RunConfig, directory: Path) -> list[str]:
    """What of the command line makes a run read what is there.

    Args:
        config: the run.
        directory: for a corpus of zeros.

    Raises:
        UserError: the size of the vocabulary is not known.
    """
    data = config.data
    paths = [p for p in (*data.train_data_path, *data.valid_data_path) if isinstance(p, str)]
    if paths and all(Path(f"{path}.idx").exists() for path in paths):
        return []
    prefix = str(directory / "zeros")
    size = vocab_size(config)
    builder = IndexedDatasetBuilder(get_bin_path(prefix), dtype=DType.optimal_dtype(size))
    zeros = torch.zeros(_SAMPLES * config.train.seq_length + 1, dtype=torch.int64)
    builder.add_document(zeros, [len(zeros)])
    builder.finalize(f"{prefix}.idx")
    return [
        f"--model.vocab_size={size}",
        f"--data.train_data_path=[{prefix}]",
        f"--data.valid_data_path=[{prefix}]",
        "--data.tokenizer=bytes",
        "--data.vocab_file=null",
        "--data.merge_file=null",
    ]


def vocab_size(config: RunConfig) -> int:
    """Of the run's model; of its tokenizer, where the run file leaves it out.

    Raises:
        UserError: neither is known.
    """
    if config.model.vocab_size is not None:
        return config.model.vocab_size
    try:
        return with_vocabulary(config.model, config.data).vocabulary
    except UserError as error:
        raise UserError(f"{error}; to rehearse without it: --model.vocab_size N") from None
