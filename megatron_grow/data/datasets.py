"""The training and validation samples of a run, with cached indices."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from torch.utils.data import Dataset

from megatron_grow.data.cache import Arrays, cached
from megatron_grow.data.check import Split
from megatron_grow.data.files import FileArray
from megatron_grow.data.indexed import Corpus
from megatron_grow.data.samples import BlendedSamples, order_blend
from megatron_grow.parallel.agreement import place, together

Result = TypeVar("Result")


@dataclass(frozen=True)
class Datasets:
    """The samples of a run, each found by its global number."""

    train: Dataset
    valid: Dataset | None


class SampleKind(Protocol):
    """How samples are made of a corpus."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the index depends on besides the corpus and its documents; JSON."""

    def index(self, corpus: Corpus, documents: tuple[int, int]) -> Arrays:
        """What takes long to find out, of the documents from the first to before the second."""

    def samples(self, corpus: Corpus, index: Mapping[str, FileArray], vocab_size: int) -> Dataset:
        """Samples by number, any from 0; token ids are below ``vocab_size``."""


def build_datasets(
    train: Split,
    valid: Split | None,
    kind: SampleKind,
    *,
    train_samples: int,
    valid_samples: int,
    cache_dir: Path,
) -> Datasets:
    """Build the datasets of a run, on all ranks together or in a single process.

    Sample number k depends on the corpora, the blend and ``kind`` alone. What ``cache_dir`` lacks
    is computed by rank 0 and, where others do not see its directory, once more on each node.

    Args:
        train: As :func:`~megatron_grow.data.check.check_corpora` found it.
        valid: The same; None for no validation.
        kind: Of samples.
        train_samples: Training samples that the run will read.
        valid_samples: Validation samples of one evaluation.
        cache_dir: Where indices are kept; made if needed.

    Raises:
        UserError: on all ranks, ``cache_dir`` cannot be written on one of them.
    """
    build = partial(_build, kind=kind, cache_dir=cache_dir)
    return _in_turn(
        lambda: Datasets(
            train=build(train, train_samples),
            valid=build(valid, valid_samples) if valid else None,
        )
    )


def _in_turn(action: Callable[[], Result]) -> Result:
    """Run ``action`` on rank 0, then on the first rank of every node, then on the others.

    What the first ones leave in a directory the later ones find, be it the node's or the job's.
    """
    rank, _ = place()
    turn = 0 if rank == 0 else 1 if os.environ.get("LOCAL_RANK") == "0" else 2
    results = [together(action if turn == now else lambda: None) for now in range(3)]
    return results[turn]  # type: ignore[return-value]


def _build(split: Split, samples: int, *, kind: SampleKind, cache_dir: Path) -> Dataset:
    datasets = []
    for corpus in split.corpora:
        documents = split.documents(corpus)
        depends_on = {**kind.settings, "lengths": corpus.digest, "documents": documents}
        index = cached(cache_dir, depends_on, partial(kind.index, corpus, documents))
        datasets.append(kind.samples(corpus, index, split.vocab_size))
    if len(datasets) == 1:
        return datasets[0]
    weights = np.array(split.blend.weights or [len(corpus.tokens) for corpus in split.corpora])
    shares = weights / weights.sum()
    shares = (shares / shares.sum()).tolist()  # twice, as in Megatron: one ulp decides ties
    depends_on = {"index": "blend, version 1", "shares": shares, "samples": samples}
    return BlendedSamples(
        datasets, cached(cache_dir, depends_on, partial(order_blend, shares, samples))
    )
