"""The training and validation samples of a run, with cached indices."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch.utils.data import Dataset

from megatron_grow.data.cache import cached
from megatron_grow.data.check import Split
from megatron_grow.data.samples import BlendedSamples, CorpusSamples, order_blend, order_corpus
from megatron_grow.parallel.agreement import place, together

Result = TypeVar("Result")


@dataclass(frozen=True)
class Datasets:
    """The samples of a run, each found by its global number."""

    train: Dataset
    valid: Dataset | None


def build_datasets(
    train: Split,
    valid: Split | None,
    *,
    seq_length: int,
    seed: int,
    train_samples: int,
    valid_samples: int,
    cache_dir: Path,
) -> Datasets:
    """Build the datasets of a run, on all ranks together or in a single process.

    Sample number k depends on the corpora, the blend, ``seq_length`` and ``seed`` alone. What
    ``cache_dir`` lacks is computed by rank 0 and, where others do not see its directory, once more
    on each node.

    Args:
        train: As :func:`~megatron_grow.data.check.check_data` found it.
        valid: The same; None for no validation.
        seq_length: Tokens in one sample.
        seed: Of the order of documents and samples.
        train_samples: Training samples that the run will read.
        valid_samples: Validation samples of one evaluation.
        cache_dir: Where indices are kept; made if needed.

    Raises:
        UserError: on all ranks, ``cache_dir`` cannot be written on one of them.
    """
    build = partial(_build, seq_length=seq_length, seed=seed, cache_dir=cache_dir)
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


def _build(split: Split, samples: int, *, seq_length: int, seed: int, cache_dir: Path) -> Dataset:
    datasets = []
    for corpus in split.corpora:
        documents = split.documents(corpus)
        depends_on = {
            "index": "corpus, version 1",
            "lengths": corpus.digest,
            "documents": documents,
            "seq_length": seq_length,
            "seed": seed,
        }
        order = partial(order_corpus, corpus, documents, seq_length=seq_length, seed=seed)
        index = cached(cache_dir, depends_on, order)
        vocab_size = split.vocab_size
        datasets.append(
            CorpusSamples(corpus, index, seq_length=seq_length, seed=seed, vocab_size=vocab_size)
        )
    if len(datasets) == 1:
        return datasets[0]
    weights = np.array(split.blend.weights or [len(corpus.tokens) for corpus in split.corpora])
    shares = weights / weights.sum()
    shares = (shares / shares.sum()).tolist()  # twice, as in Megatron: one ulp decides ties
    depends_on = {"index": "blend, version 1", "shares": shares, "samples": samples}
    return BlendedSamples(
        datasets, cached(cache_dir, depends_on, partial(order_blend, shares, samples))
    )
