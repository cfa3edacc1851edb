"""A thousand damaged checkpoints: each is refused in one line, or what it says is unharmed."""

from __future__ import annotations

import logging
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_grow.config.model import ModelConfig
from megatron_grow.convert.synthetic import SyntheticReader, write
from tests.convert.toy import by_torch, command, equal

TINY = ModelConfig(
    num_layers=2,
    hidden_size=8,
    num_attention_heads=2,
    vocab_size=16,
    make_vocab_size_divisible_by=8,
    max_position_embeddings=8,
    normalization="RMSNorm",
    add_bias_linear=False,
)
STEP = "iter_0000010"
LAYOUT = ("--tensor-model-parallel-size", 2)
"""Of the source, too."""
CASES = 1000

Damage = Callable[[bytes, random.Random], bytes]


def flip_a_bit(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    return (
        content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
    )


def truncate(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def clear_a_page(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    length = min(chance.choice((16, 512, 4096)), len(content) - start)
    return content[:start] + bytes(length) + content[start + length :]


def repeat_a_byte(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    return content[:place] + content[place : place + 1] + content[place:]


DAMAGES: tuple[Damage, ...] = (flip_a_bit, flip_a_bit, truncate, clear_a_page, repeat_a_byte)


def damaged(source: Path, target: Path, case: int) -> str:
    """A copy of a checkpoint with one file damaged, missing or swapped; what was done."""
    shutil.copytree(source, target)
    chance = random.Random(case)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    path = chance.choice(files)
    if chance.random() < 0.03:
        path.unlink()
        return f"{path.name} missing"
    if chance.random() < 0.03:
        other = chance.choice(files)
        a, b = path.read_bytes(), other.read_bytes()
        path.write_bytes(b)
        other.write_bytes(a)
        return f"{path.name} and {other.name} swapped"
    damage = chance.choice(DAMAGES)
    path.write_bytes(damage(path.read_bytes(), chance))
    return f"{damage.__name__} of {path.name}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cut for TP2, with an optimizer."""
    root = tmp_path_factory.mktemp("source")
    write(root, SyntheticReader(TINY, precision="bf16"), tensor_parallel=2)
    return root


@pytest.fixture
def quiet() -> Iterator[None]:
    """torch's checkpoints log every step of every load."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.usefixtures("quiet")
def test_a_thousand_damaged_checkpoints(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = by_torch(source / STEP)
    record = (source / STEP / "megatron_grow.json").read_bytes()
    outcomes: Counter[str] = Counter()
    for case in range(CASES):
        here, there = tmp_path / f"{case}", tmp_path / f"{case} converted"
        what = damaged(source, here, case)
        before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
        code = command("reshard", here, there, "--threads", 1, *LAYOUT)
        said = capsys.readouterr()
        after = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
        assert before == after, f"case {case}, {what}: the source was touched"
        if code == 0:
            outcomes["unharmed"] += 1
            assert equal(by_torch(there / STEP), truth), f"case {case}, {what}"
            assert (there / STEP / "megatron_grow.json").read_bytes() == record, what
        else:
            outcomes["refused"] += 1
            assert code == 2, f"case {case}, {what}"
            assert said.err.startswith("error: "), f"case {case}, {what}: {said.err}"
            assert said.err.count("\n") == 1, f"case {case}, {what}: {said.err}"
            assert not there.exists(), f"case {case}, {what}: left behind"
        shutil.rmtree(here)
        shutil.rmtree(there, ignore_errors=True)
    # At this size many bytes mean nothing (padding, second copies of names), and two of the files
    # are not read but written anew (common.pt, metadata.json).
    assert outcomes["refused"] > 0.5 * CASES, outcomes
    assert outcomes["unharmed"] > 0.02 * CASES, outcomes
