"""The masked samples of a run, of every length that its stages have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from megatron_grow.data.check import Split
from megatron_grow.data.datasets import Datasets, build_datasets
from megatron_grow.data.masked.samples import MaskedText


class SamplesByLength(Dataset):
    """Samples, and shorter ones of the same corpora, which are not parts of them.

    Args:
        by_parts: The samples, by how often their length fits into the longest; 1 is among them.
    """

    def __init__(self, by_parts: Mapping[int, Dataset]) -> None:
        self._by_parts = by_parts

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Sample ``number`` of the longest."""
        return self._by_parts[1][number]

    def cut(self, parts: int) -> Dataset:
        """The samples whose length is so small a part of the longest."""
        return self._by_parts[parts]


def build_masked(
    splits: tuple[Split, Split | None],
    kind: MaskedText,
    seq_lengths: Iterable[int],
    *,
    train_samples: int,
    valid_samples: int,
    cache_dir: Path,
) -> Datasets:
    """As :func:`~megatron_grow.data.datasets.build_datasets`, for stages of several lengths.

    Args:
        splits: Training and validation.
        kind: Of the longest samples.
        seq_lengths: All lengths; each divides the longest.
        train_samples: Training samples that the run will read, if all are of the longest length.
        valid_samples: The same of one evaluation.
        cache_dir: Where indices are kept.
    """
    all_parts = sorted({1, *(kind.seq_length // length for length in seq_lengths)})
    found: dict[int, Any] = {
        parts: build_datasets(
            *splits,
            replace(kind, seq_length=kind.seq_length // parts),
            train_samples=train_samples * parts,
            valid_samples=valid_samples * parts,
            cache_dir=cache_dir,
        )
        for parts in all_parts
    }
    return Datasets(
        train=SamplesByLength({parts: each.train for parts, each in found.items()}),
        valid=SamplesByLength({parts: each.valid for parts, each in found.items()})
        if splits[1]
        else None,
    )
