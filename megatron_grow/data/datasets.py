"""Training and validation samples, through Megatron's datasets and cached indices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from torch.utils.data import Dataset

from megatron_grow.config.sections import DataSection
from megatron_grow.data.check import Part, check_data


class EndlessGPTDataset(GPTDataset):
    """A :class:`GPTDataset` whose sample number k is the same however many are asked for.

    Megatron shuffles all epochs that a run needs together, so a longer run sees other samples from
    the first step on. Here Megatron's indices cover exactly one epoch. Epoch 0 reads them as they
    are, and each later epoch in a permutation of its own that only the seed and its number decide.
    So there is a sample for every number, and one set of cached indices for runs of any length.

    Args:
        num_samples: Samples that will be read; nothing but ``len`` depends on it.
        The others are as in Megatron.
    """

    def __init__(
        self,
        indexed_dataset: IndexedDataset,
        dataset_path: str | None,
        indexed_indices: np.ndarray,
        num_samples: int,
        index_split: Split,
        config: GPTDatasetConfig,
    ) -> None:
        super().__init__(indexed_dataset, dataset_path, indexed_indices, None, index_split, config)
        self.num_samples = num_samples
        self._epoch = 0
        self._order: np.ndarray | None = None

    @property
    def samples_per_epoch(self) -> int:
        """Samples after which the corpus begins again; tokens left over are dropped."""
        return super().__len__()

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, idx: int) -> dict[str, torch.Tensor]:
        """Sample number ``idx``, any from 0.

        Returns:
            ``tokens``, ``labels`` (the next tokens) and ``position_ids``, (seq_length,) int64, and
            ``loss_mask``, (seq_length,) float32.
        """
        epoch, position = divmod(int(idx), self.samples_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutation(epoch)
        return super().__getitem__(position if self._order is None else self._order[position])

    def _permutation(self, epoch: int) -> np.ndarray | None:
        """The order of ``epoch``, (samples_per_epoch,) uint32; None for that of the indices."""
        if epoch == 0:
            return None
        order = np.arange(self.samples_per_epoch, dtype=np.uint32)
        # RandomState, as in Megatron: numpy promises that its stream never changes.
        np.random.RandomState([self.config.random_seed, epoch]).shuffle(order)
        return order


@dataclass(frozen=True)
class Datasets:
    """The samples of a run, each found by its global number."""

    train: Dataset
    valid: Dataset | None


def build_datasets(
    data: DataSection,
    *,
    seq_length: int,
    seed: int,
    train_samples: int,
    valid_samples: int,
    vocab_size: int,
    cache_dir: Path,
) -> Datasets:
    """Build the datasets of a run, on all ranks together or in a single process.

    Sample number k depends on the corpora, the blend, ``seq_length`` and ``seed`` alone. Rank 0
    builds the indices that ``cache_dir`` lacks; the others, to whom it must be visible, read them.

    Args:
        data: The section of the run file.
        seq_length: Tokens in one sample.
        seed: Of the order of documents and samples.
        train_samples: Training samples that the run will read.
        valid_samples: Validation samples of one evaluation; 0 for no validation.
        vocab_size: Token ids that the model knows.
        cache_dir: Where indices are kept; made if needed.

    Raises:
        UserError: as :func:`~megatron_grow.data.check.check_data`.
    """
    train, valid = check_data(
        data, seq_length=seq_length, vocab_size=vocab_size, evaluate=valid_samples > 0
    )
    with _process_group():
        if dist.get_rank() == 0:
            _discard_short_indices(cache_dir)
        build = partial(_build, seq_length=seq_length, seed=seed, cache_dir=cache_dir)
        return Datasets(
            train=build(train, Split.train, train_samples),
            valid=build(valid, Split.valid, valid_samples) if valid else None,
        )


def _build(
    part: Part, split: Split, samples: int, *, seq_length: int, seed: int, cache_dir: Path
) -> Dataset:
    weights = part.blend.weights or [float(corpus.tokens) for corpus in part.corpora]
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=seq_length,
        blend=(part.blend.prefixes, weights if len(weights) > 1 else None),
        split="1",
        # Room for the rounding of shares in a blend; it costs nothing, since no index grows.
        mid_level_dataset_surplus=float(len(part.corpora)),
        path_to_cache=str(cache_dir),
        tokenizer=_CorpusIdentity([corpus.digest for corpus in part.corpora]),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    # Only this part of the documents, and of the three splits only this one.
    config.split_matrix = [part.share if other is split else None for other in Split]
    sizes = [samples if other is split else 0 for other in Split]
    builder = BlendedMegatronDatasetBuilder(EndlessGPTDataset, sizes, lambda: True, config)
    return builder.build()[split.value]


@dataclass(frozen=True)
class _CorpusIdentity:
    """Stands where Megatron's configuration wants a tokenizer.

    Samples come from tokens on disk and need none. What is asked of it is its identity, which
    enters the names of cached indices: so those of a corpus that was made anew are not found.
    """

    digests: list[str]
    vocab_size = None
    eod = None

    @property
    def unique_identifiers(self) -> dict[str, list[str]]:
        """What the names of cached indices depend on."""
        return {"digests": self.digests}


def _discard_short_indices(cache_dir: Path) -> None:
    """Delete indices that a killed run left half written; Megatron would take them for whole."""
    for path in cache_dir.glob("*.npy"):
        try:
            np.load(path, mmap_mode="r")
        except (EOFError, ValueError):
            path.unlink()


@contextmanager
def _process_group() -> Iterator[None]:
    """Lend a single process a group of its own: Megatron's blend asks for a rank in any case."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
