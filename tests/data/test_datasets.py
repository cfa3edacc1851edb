"""Samples: what they hold, and that their order depends on the seed and their number alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from multiprocessing import active_children
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from megatron.core.datasets import helpers
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split, normalize

from megatron_grow.config.sections import DataSection
from megatron_grow.data import datasets, samples
from megatron_grow.data.check import check_data
from megatron_grow.data.datasets import Datasets, build_datasets
from megatron_grow.data.loader import micro_batches
from megatron_grow.data.samples import RunningText
from megatron_grow.inputs.errors import UserError
from tests.data.corpora import write_corpus, write_ids
from tests.distributed import run_ranks

SEQ_LENGTH = 16
DOCUMENTS = [5, 40, 1, 17, 16, 33, 90, 2, 64, 12] * 10


@pytest.fixture
def corpus(tmp_path) -> str:
    """100 documents with tokens 0, 1, 2, ...: 2,800 tokens, 174 samples an epoch."""
    return write_corpus(tmp_path / "c", DOCUMENTS)


def build(cache: Path, *paths: str | float, **arguments: object) -> Datasets:
    fields = {"split": "1"} | {k: arguments.pop(k) for k in ("split",) if k in arguments}
    kind = RunningText(SEQ_LENGTH, arguments.pop("seed", 7))
    arguments = {"train_samples": 100, "valid_samples": 0} | arguments
    parts = check_data(
        DataSection(train_data_path=list(paths), **fields),
        seq_length=SEQ_LENGTH,
        vocab_size=60_000,
        evaluate=arguments["valid_samples"] > 0,
    )
    return build_datasets(*parts, kind, cache_dir=cache, **arguments)


def tokens_of(dataset, numbers: range) -> list[list[int]]:
    return [dataset[number]["tokens"].tolist() for number in numbers]


def test_a_sample_is_consecutive_text(corpus, tmp_path):
    """Labels are the tokens one further on, by the .bin itself, documents joined end to end."""
    raw = np.fromfile(f"{corpus}.bin", dtype=np.uint16).tolist()
    ends = np.cumsum(DOCUMENTS)
    beginnings = {0, *ends[:-1].tolist()}
    train = build(tmp_path / "cache", corpus).train
    for number in range(174):
        sample = train[number]
        tokens, labels = sample["tokens"].tolist(), sample["labels"].tolist()
        assert tokens[1:] == labels[:-1]
        for token, label in zip(tokens, labels, strict=True):
            if token + 1 in ends:  # the last token of a document: the next document begins
                assert label in beginnings
            else:
                assert label == raw[token + 1]


def test_fields_of_a_sample(corpus, tmp_path):
    sample = build(tmp_path / "cache", corpus).train[3]
    assert sorted(sample) == ["labels", "loss_mask", "position_ids", "tokens"]
    assert {sample[name].dtype for name in ("tokens", "labels", "position_ids")} == {torch.int64}
    assert sample["position_ids"].tolist() == list(range(SEQ_LENGTH))
    assert sample["loss_mask"].dtype == torch.float32
    assert sample["loss_mask"].tolist() == [1.0] * SEQ_LENGTH


def test_an_epoch_reads_every_sample_once_and_the_next_in_another_order(corpus, tmp_path):
    train = build(tmp_path / "cache", corpus).train
    assert train.samples_per_epoch == (2800 - 1) // SEQ_LENGTH == 174
    epochs = [tokens_of(train, range(e * 174, (e + 1) * 174)) for e in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    seen = list(chain(*epochs[0]))
    assert len(set(seen)) == len(seen) == 174 * SEQ_LENGTH


@pytest.mark.parametrize("blended", [False, True])
def test_order_does_not_depend_on_the_length_of_the_run(tmp_path, blended):
    """Megatron's own order does: it shuffles all epochs of a run together."""
    paths: list[str | float] = [write_corpus(tmp_path / "a", DOCUMENTS)]
    if blended:
        small = write_corpus(tmp_path / "b", [300], first_token=10_000)
        paths = [0.3, small, 0.7, paths[0]]
    runs = [
        build(tmp_path / f"cache{samples}", *paths, train_samples=samples).train
        for samples in (20, 400, 2000)
    ]
    assert tokens_of(runs[0], range(20)) == tokens_of(runs[2], range(20))
    assert tokens_of(runs[1], range(400)) == tokens_of(runs[2], range(400))
    other = build(tmp_path / "cache", *paths, seed=8).train
    assert tokens_of(other, range(20)) != tokens_of(runs[0], range(20))


def test_a_sample_does_not_depend_on_what_was_read_before(corpus, tmp_path):
    train = build(tmp_path / "cache", corpus).train
    in_order = tokens_of(train, range(500))
    again = build(tmp_path / "cache", corpus).train
    for number in (499, 3, 180, 400, 2):
        assert again[number]["tokens"].tolist() == in_order[number]


@pytest.mark.parametrize("weights", [(0.2, 0.5, 0.3), None])
def test_blend_shares(tmp_path, weights):
    """After any number of samples each corpus has had its share, to within two samples."""
    lengths = (2000, 500, 1500)
    prefixes = [
        write_corpus(tmp_path / str(i), [length], first_token=10_000 * (i + 1))
        for i, length in enumerate(lengths)
    ]
    paths = prefixes if weights is None else [x for p in zip(weights, prefixes) for x in p]  # noqa: B905
    train = build(tmp_path / "cache", *paths, train_samples=300).train
    source = np.array([train[n]["tokens"][0].item() // 10_000 - 1 for n in range(300)])
    shares = np.array(weights or [length / 4000 for length in lengths])
    for n in range(1, 301):
        assert np.abs(np.bincount(source[:n], minlength=3) - n * shares).max() < 2


def test_many_corpora_and_few_samples(tmp_path):
    """The rounding of many small shares must not ask a corpus for more than it was built for."""
    prefixes = [write_corpus(tmp_path / str(i), [100]) for i in range(30)]
    paths = [x for i, prefix in enumerate(prefixes) for x in (30.0 if i == 0 else 1.0, prefix)]
    train = build(tmp_path / "cache", *paths, train_samples=4).train
    assert len(tokens_of(train, range(4))) == 4


def test_split_by_documents(tmp_path):
    """Documents of 17 tokens are one sample each: 80 train, 15 validate, 5 test."""
    prefix = write_corpus(tmp_path / "c", [17] * 100)
    built = build(tmp_path / "cache", prefix, split="80,15,5", train_samples=80, valid_samples=15)
    train = set(chain(*tokens_of(built.train, range(79))))
    valid = set(chain(*tokens_of(built.valid, range(14))))
    assert train < set(range(80 * 17))
    assert valid < set(range(80 * 17, 95 * 17))
    assert build(tmp_path / "cache", prefix, split="80,15,5").valid is None


def test_indices_are_cached_once_for_runs_of_any_length(corpus, tmp_path):
    build(tmp_path / "cache", corpus, train_samples=10)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").iterdir()}
    build(tmp_path / "cache", corpus, train_samples=10_000)
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "cache").iterdir()} == before != {}


def test_torn_index_is_made_again(corpus, tmp_path):
    """Its first half on disk, the blocks of its second half lost: a file of the right size."""
    small = write_corpus(tmp_path / "b", [300], first_token=10_000)
    paths = 0.3, small, 0.7, corpus
    expected = tokens_of(build(tmp_path / "cache", *paths).train, range(50))
    indices = list((tmp_path / "cache").iterdir())
    assert len(indices) == 3
    for index in indices:
        content = index.read_bytes()
        half = len(content) // 2
        for torn in (content[:half], content[:half] + bytes(len(content) - half)):
            index.write_bytes(torn)
            assert tokens_of(build(tmp_path / "cache", *paths).train, range(50)) == expected


def test_indices_of_an_older_corpus_are_not_used(corpus, tmp_path):
    build(tmp_path / "cache", corpus)
    write_corpus(Path(corpus), [700] * 4)  # as many tokens, cut otherwise
    stale = tokens_of(build(tmp_path / "cache", corpus).train, range(174))
    fresh = tokens_of(build(tmp_path / "other", corpus).train, range(174))
    assert stale == fresh


def test_order_is_that_of_megatron_core(corpus, tmp_path):
    """Its own dataset and blend, over the same files."""
    small = write_corpus(tmp_path / "b", [300, 20, 7], first_token=10_000)
    weights = [0.3, 0.7]
    config = GPTDatasetConfig(
        random_seed=7,
        sequence_length=SEQ_LENGTH,
        blend=([small, corpus], weights),
        split="1",
        path_to_cache=str(tmp_path / "theirs"),
        tokenizer=SimpleNamespace(vocab_size=None, eod=None, unique_identifiers={}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
    )
    theirs = []
    for prefix in (small, corpus):
        stored = IndexedDataset(prefix)
        documents = np.arange(len(stored), dtype=np.int32)
        theirs.append(GPTDataset(stored, prefix, documents, None, Split.train, config))
    ours = build(tmp_path / "cache", corpus).train
    assert ours.samples_per_epoch == len(theirs[1])
    assert tokens_of(ours, range(174)) == tokens_of(theirs[1], range(174))
    with one_process():
        blend = BlendedDataset(theirs, weights, 60, config)
    ours = build(tmp_path / "cache", 0.3, small, 0.7, corpus).train
    assert tokens_of(ours, range(60)) == tokens_of(blend, range(60))


@contextmanager
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("dtype", "bad"), [(np.uint16, 60_000), (np.int32, -1)])
def test_a_token_id_that_the_first_look_missed(tmp_path, dtype, bad):
    """Of more than 4 Mi tokens the start looks at 64 blocks; a sample is looked at when read."""
    size, place = 5 << 20, 75_000
    starts = np.linspace(0, size - (1 << 16), 64, dtype=int)
    assert not any(start <= place < start + (1 << 16) for start in starts)
    ids = np.arange(size) % 1000
    ids[place] = bad
    prefix = write_ids(tmp_path / "c", ids, [1 << 12] * (size >> 12), dtype=dtype)
    data = DataSection(train_data_path=[prefix], split="1")
    parts = check_data(data, seq_length=1 << 12, vocab_size=1000, evaluate=False)
    cache = tmp_path / "cache"
    train = build_datasets(
        *parts, RunningText(1 << 12, seed=1), train_samples=1, valid_samples=0, cache_dir=cache
    ).train
    seen = []
    message = rf"c\.bin: token {place} of the corpus has the id {bad}, and the vocabulary"
    with pytest.raises(UserError, match=message):
        for number in range(train.samples_per_epoch):
            seen.append(int(train[number]["labels"].max()))
    assert set(seen) == {999}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corpus_cut_under_a_running_job(corpus, tmp_path, workers):
    """A line that names the file, from a loader process too; a memory map would end by SIGBUS."""
    batches = micro_batches(
        build(tmp_path / "cache", corpus).train,
        first_sample=0,
        global_batch_size=2,
        micro_batch_size=2,
        data_parallel_rank=0,
        data_parallel_size=1,
        num_workers=workers,
    )
    next(batches)
    os.truncate(f"{corpus}.bin", 100)
    with pytest.raises(UserError) as error:
        for _ in range(200):
            next(batches)
    assert f"data.train_data_path: {corpus}.bin has 100 bytes and had 5600" in str(error.value)
    assert "\n" not in str(error.value)
    # Though error's traceback is still here: a process that is deaf to SIGTERM and outlives the
    # iterator would be waited for at exit, for ever.
    assert active_children() == []


def test_nodes_that_do_not_share_a_cache(corpus, tmp_path):
    """Each makes the indices for itself, once, and reads the same."""
    paths = 0.5, corpus, 0.5, write_corpus(tmp_path / "b", [300], first_token=10_000)
    alone = tokens_of(build(tmp_path / "alone", *paths).train, range(100))
    assert run_ranks(4, _read_on_two_nodes, tmp_path, paths) == [alone] * 4
    assert len(list((tmp_path / "node0").iterdir())) == 3
    assert len(list((tmp_path / "node1").iterdir())) == 3


def _read_on_two_nodes(directory: Path, paths: tuple) -> list[list[int]]:
    node, local = divmod(dist.get_rank(), 2)
    os.environ["LOCAL_RANK"] = str(local)
    if local == 1:  # finds what the first rank of its node has made
        samples.order_corpus = datasets.order_blend = _refuse
    return tokens_of(build(directory / f"node{node}", *paths).train, range(100))


def _refuse(*arguments: object, **options: object) -> None:
    raise AssertionError("computed once more")


def test_a_cache_that_one_rank_cannot_write(corpus, tmp_path):
    """All ranks end with its line, and none waits for it."""
    (tmp_path / "cache1").touch()
    lines = run_ranks(2, _fail, tmp_path, corpus)
    assert lines[0] == lines[1]
    assert lines[0].startswith("rank 1 on ") and f": data.cache_dir={tmp_path}/cache1 " in lines[0]
    assert lines[0].endswith(" cannot be written: File exists")


def _fail(directory: Path, corpus: str) -> str:
    with pytest.raises(UserError) as error:
        build(directory / f"cache{dist.get_rank()}", corpus)
    return str(error.value)


def test_all_ranks_read_the_same_samples(corpus, tmp_path):
    small = write_corpus(tmp_path / "b", [300], first_token=10_000)
    paths = 0.3, small, 0.7, corpus
    alone = tokens_of(build(tmp_path / "alone", *paths).train, range(100))
    ranks = run_ranks(2, _read, tmp_path / "shared", paths)
    assert ranks == [(0, alone), (1, alone)]
    assert len(os.listdir(tmp_path / "shared")) == len(os.listdir(tmp_path / "alone"))


def _read(cache: Path, paths: tuple) -> tuple[int, list[list[int]]]:
    return dist.get_rank(), tokens_of(build(cache, *paths).train, range(100))


def test_ties_of_a_blend_are_decided_as_in_megatron(tmp_path):
    """Its builder and its dataset normalise the weights one after the other."""
    weights = [30, 2.5, 2.5]
    prefixes = [write_corpus(tmp_path / f"c{n}", [2000], first_token=9000 * n) for n in range(3)]
    paths = [value for pair in zip(weights, prefixes, strict=True) for value in pair]
    ours = tokens_of(build(tmp_path / "cache", *paths).train, range(60))
    source, position = np.zeros(60, np.int16), np.zeros(60, np.int64)
    helpers.build_blending_indices(
        source, position, np.array(normalize(normalize(weights))), 3, 60, False
    )
    assert [sample[0] // 9000 for sample in ours] == source.tolist()
