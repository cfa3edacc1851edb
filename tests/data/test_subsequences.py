"""Samples cut into parts: one stream of tokens, whatever the lengths and batches."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from megatron_grow.config.sections import DataSection
from megatron_grow.data.check import check_data
from megatron_grow.data.datasets import build_datasets
from megatron_grow.data.loader import micro_batches
from megatron_grow.data.samples import RunningText
from megatron_grow.data.subsequences import Subsequences
from tests.data.corpora import write_corpus

LENGTH = 16
SAMPLES = 60
# Steps, sequence length, global batch, micro-batch, data-parallel ranks of one stage after another.
STAGES = {
    "one length": [(15, 16, 4, 2, 2)],
    "longer": [(6, 4, 8, 1, 4), (12, 8, 4, 2, 2), (6, 16, 4, 4, 1)],
    "odd batches": [(4, 4, 6, 3, 2), (3, 8, 5, 5, 1), (1, 2, 12, 2, 3), (6, 16, 6, 1, 3)],
    "shorter again": [(5, 16, 2, 1, 2), (20, 2, 10, 5, 1), (4, 8, 3, 1, 3)],
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory):
    """Real samples; a token says where in the corpus it stands."""
    directory = tmp_path_factory.mktemp("corpus")
    prefix = write_corpus(directory / "c", [5, 40, 1, 17, 16, 33, 90, 2, 64, 12] * 4)
    parts = check_data(
        DataSection(train_data_path=[prefix], split="1"),
        seq_length=LENGTH,
        vocab_size=60_000,
        evaluate=False,
    )
    return build_datasets(
        *parts,
        RunningText(LENGTH, 3),
        train_samples=SAMPLES,
        valid_samples=0,
        cache_dir=directory / "cache",
    ).train


def stream(dataset, field: str) -> list[int]:
    """``field`` of the samples in order, end to end."""
    return [x for number in range(SAMPLES) for x in dataset[number][field].tolist()]


def read(dataset, stages: list[tuple[int, ...]], workers: int = 0) -> dict[str, list[int]]:
    """What a run reads, step by step and, within a step, in the order of its global batch."""
    found: dict[str, list[int]] = {"tokens": [], "labels": []}
    for steps, length, batch, micro, ranks in stages:
        count = steps * batch // (micro * ranks)
        position = len(found["tokens"])
        assert position % length == 0
        loaders = [
            islice(
                micro_batches(
                    Subsequences(dataset, LENGTH // length),
                    first_sample=position // length,
                    global_batch_size=batch,
                    micro_batch_size=micro,
                    data_parallel_rank=rank,
                    data_parallel_size=ranks,
                    num_workers=workers,
                ),
                count,
            )
            for rank in range(ranks)
        ]
        for of_ranks in zip(*loaders, strict=True):
            for one in of_ranks:
                assert one["tokens"].shape == (micro, length)
                for field, values in found.items():
                    values += one[field].flatten().tolist()
    return found


@pytest.mark.parametrize("name", STAGES)
def test_every_token_once_and_in_order(dataset, name):
    found = read(dataset, STAGES[name])
    number = len(found["tokens"])
    assert number == sum(steps * length * batch for steps, length, batch, *_ in STAGES[name])
    for field, tokens in found.items():
        assert tokens == stream(dataset, field)[:number]


def test_loader_processes_change_nothing(dataset):
    assert read(dataset, STAGES["odd batches"], workers=2) == read(dataset, STAGES["odd batches"])


@pytest.mark.parametrize("cuts", [1, 2, 4, 16])
def test_fields_of_a_part(dataset, cuts):
    parts, length = Subsequences(dataset, cuts), LENGTH // cuts
    for number in (0, 5 * cuts + cuts - 1, 5 * cuts, 7):  # in any order
        whole, part = dataset[number // cuts], parts[number]
        start = number % cuts * length
        assert sorted(part) == sorted(whole)
        assert part["position_ids"].tolist() == list(range(length))
        for field in ("tokens", "labels", "loss_mask"):
            assert torch.equal(part[field], whole[field][start : start + length])
            assert part[field].dtype == whole[field].dtype
        assert part["labels"][:-1].tolist() == part["tokens"][1:].tolist()


def test_one_part_is_the_sample(dataset):
    parts = Subsequences(dataset, 1)
    for number in range(SAMPLES):
        for field, value in dataset[number].items():
            assert torch.equal(parts[number][field], value)


def test_a_sample_is_read_once_for_all_its_parts(dataset):
    class Counting:
        reads = 0

        def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
            self.reads += 1
            return dataset[number]

    counting = Counting()
    parts = Subsequences(counting, 8)  # type: ignore[arg-type]
    for number in range(80):
        parts[number]
    assert counting.reads == 10
