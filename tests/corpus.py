"""A small real corpus: sources of the Python standard library, as bytes."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder, get_bin_path

EOD = 256


def write_corpus(directory: Path, modules: tuple[str, ...] = ("argparse", "ast", "typing")) -> str:
    """Write a corpus with one document for each module; its prefix.

    Made by megatron-core's own writer, so that tests of training do not rest on our preprocessing.
    """
    prefix = str(directory / "stdlib_text_document")
    library = Path(sysconfig.get_paths()["stdlib"])
    builder = IndexedDatasetBuilder(get_bin_path(prefix), dtype=DType.optimal_dtype(EOD + 1))
    for module in modules:
        text = np.frombuffer((library / f"{module}.py").read_bytes(), dtype=np.uint8)
        ids = torch.from_numpy(np.append(text.astype(np.int64), EOD))
        builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")
    return prefix
