"""Random damage to everything that a run reads: one line, or data that are provably right."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megatron_grow.config.sections import DataSection
from megatron_grow.data.check import check_data
from megatron_grow.data.datasets import build_datasets
from megatron_grow.data.samples import RunningText
from megatron_grow.inputs.errors import UserError
from tests.data.corpora import describe, write_ids

VOCAB_SIZE = 257
SEQ_LENGTH = 16
SAMPLES = 80
LENGTHS = {"a": [5, 40, 1, 17, 16, 33, 90, 2, 64, 12] * 3, "b": [10] * 100}


def read(directory: Path, vocab_size: int = VOCAB_SIZE) -> list[list[int]]:
    """Tokens and last label of every sample of a blend of both corpora."""
    data = DataSection(
        train_data_path=[0.5, str(directory / "a"), 0.5, str(directory / "b")], split="1"
    )
    parts = check_data(data, seq_length=SEQ_LENGTH, vocab_size=vocab_size, evaluate=False)
    train = build_datasets(
        *parts,
        RunningText(SEQ_LENGTH, 1),
        train_samples=SAMPLES,
        valid_samples=0,
        cache_dir=directory / "cache",
    ).train
    samples = [train[number] for number in range(SAMPLES)]
    return [[*s["tokens"].tolist(), s["labels"][-1].item()] for s in samples]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora of bytes with sidecars, and their cached indices."""
    directory = tmp_path_factory.mktemp("pristine")
    for number, (name, lengths) in enumerate(LENGTHS.items()):
        ids = np.random.RandomState(number).randint(0, VOCAB_SIZE, sum(lengths))
        prefix = write_ids(directory / name, ids, lengths)
        describe(prefix, documents=len(lengths), tokens=sum(lengths))
    read(directory)
    return directory


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """Where each token of each sample stands in .bin of both corpora, one after the other."""
    directory = tmp_path_factory.mktemp("places")
    first = 0
    for name, lengths in LENGTHS.items():
        write_ids(directory / name, np.arange(first, first + sum(lengths)), lengths)
        first += sum(lengths)
    return np.array(read(directory, vocab_size=first))


def damage(content: bytes, chance: random.Random) -> bytes:
    """One thing that disks, copies and hands do to a file."""
    size = len(content)
    place = chance.randrange(size)
    match chance.randrange(8):
        case 0 | 1:
            return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[
                place + 1 :
            ]  # fmt: skip
        case 2:
            return content[:place]
        case 3:
            return content[:place] + bytes(size - place)
        case 4:
            return content + content[: chance.randrange(1, 20)]
        case 5:
            length = chance.randrange(1, 17)
            noise = chance.randbytes(length)
            return (content[:place] + noise + content[place + length :])[:size]
        case 6:
            other = chance.randrange(size)
            first, last = sorted((place, other))
            return content[:first] + content[last:] + content[first:last]
        case _:
            return content[:place] + content[place + chance.randrange(1, 9) :]


@pytest.mark.parametrize("kind", ["*.bin", "*.idx", "*.json", "cache/*"])
def test_one_line_or_right_data(pristine, places, tmp_path, kind):
    chance = random.Random(kind)
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    files = sorted(tmp_path.glob(kind))
    contents = {file: file.read_bytes() for file in files}
    outcomes: Counter[str] = Counter()
    for _ in range(120):
        file = chance.choice(files)
        file.write_bytes(damage(contents[file], chance))
        try:
            found = read(tmp_path)
        except UserError as error:
            assert "\n" not in str(error)
            assert str(file.with_suffix("")) in str(error)
            outcomes["refused"] += 1
        else:
            stored = np.concatenate(
                [np.fromfile(tmp_path / f"{name}.bin", np.uint16) for name in LENGTHS]
            )
            assert found == stored[places].tolist()
            assert stored[places].max() < VOCAB_SIZE
            outcomes["right"] += 1
        file.write_bytes(contents[file])
    assert outcomes["refused" if kind != "cache/*" else "right"] > 20


def test_files_that_go_missing_or_change_places(pristine, places, tmp_path):
    """Each pair of files swapped; the data of the other corpus are never read for one's own."""
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    stored = {name: np.fromfile(tmp_path / f"{name}.bin", np.uint16) for name in LENGTHS}
    expected = np.concatenate(list(stored.values()))[places].tolist()
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    for file in files:
        for other in files:
            contents = file.read_bytes(), other.read_bytes()
            if file == other:
                file.unlink()
            else:
                file.write_bytes(contents[1])
                other.write_bytes(contents[0])
            try:
                assert read(tmp_path) == expected
            except UserError as error:
                assert "\n" not in str(error)
            other.write_bytes(contents[1])
            file.write_bytes(contents[0])
