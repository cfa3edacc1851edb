"""A format of one's own: named by its import path, to convert to and from and to begin a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import CheckpointSection, OptimizerSection, TrainSection
from megatron_grow.convert.synthetic import SyntheticReader, write
from megatron_grow.train.start import find_start
from tests.convert.toy import GPT, by_torch, command, equal

NPY = "extend.npy:Npy"
STEP = "iter_0000010"
FC1 = "decoder.layers.mlp.linear_fc1.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("source"), SyntheticReader(GPT), tensor_parallel=2)


@pytest.fixture
def there(source: Path, tmp_path: Path) -> Path:
    assert command("reshard", source, tmp_path / "npy", "--format", NPY) == 0
    return tmp_path / "npy" / STEP


def test_there_and_back(source: Path, there: Path, tmp_path: Path) -> None:
    """Bit for bit, moments included; what lies between is plain numpy."""
    stored = by_torch(source)
    for kind, name in (("main_param", FC1), ("exp_avg_sq", f"optimizer.state.exp_avg_sq.{FC1}")):
        values = np.load(there / FC1 / f"{kind}.npy")
        assert values.dtype == np.float32
        assert np.array_equal(values.reshape(stored[name].shape), stored[name].numpy())
    back = ("reshard", there.parent, tmp_path / "back", "--source-format", NPY)
    assert command(*back, "--tensor-model-parallel-size", 2) == 0
    assert equal(by_torch(tmp_path / "back" / STEP), stored)
    record = json.loads((tmp_path / "back" / STEP / "megatron_grow.json").read_text())
    assert record == json.loads((source / "megatron_grow.json").read_text())


def test_grown_on_the_way(source: Path, there: Path, tmp_path: Path) -> None:
    growth = {"model": {"num_layers": 6}, "grow": {"depth": "copying_stack"}}
    (tmp_path / "grow.yaml").write_text(yaml.safe_dump(growth))
    grow = ("--grow", tmp_path / "grow.yaml")
    assert command("grow", source, tmp_path / "as npy", *grow, "--format", NPY) == 0
    assert command("grow", there, tmp_path / "of npy", *grow, "--source-format", NPY) == 0
    before = by_torch(source)[FC1].reshape(4, -1).numpy()
    after = np.load(tmp_path / "as npy" / STEP / FC1 / "main_param.npy").reshape(6, -1)
    assert np.array_equal(after, before[[0, 1, 2, 3, 0, 1]])
    named = ("--source-format", NPY)
    assert command("verify", tmp_path / "as npy", tmp_path / "of npy", *named) == 0


def test_inspected(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("inspect", there, "--check", "--source-format", NPY) == 0
    said = capsys.readouterr().out
    tensors = len(list(there.iterdir())) - len({"manifest.json", "megatron_grow.json"})
    assert "npy, written for any layout" in said and "\nmodel: num_layers 4, hidden_size" in said
    assert "optimizer state: exp_avg, exp_avg_sq, after 10" in said
    assert f"all {3 * tensors} stored tensors agree with the manifest" in said
    values = np.load(there / FC1 / "exp_avg.npy", mmap_mode="r+")
    values[0] += 1
    values.flush()
    assert command("inspect", there, "--check", "--source-format", NPY) == 2
    assert f"exp_avg of {FC1} is not what its manifest says" in capsys.readouterr().err


WRONG = """
from extend.npy import Npy, NpyReader, NpyWriter
from megatron_grow.checkpoint.format import Format

class Flat(NpyReader):
    def read(self, key, kind, box):
        return super().read(key, kind, box).flatten()

class Double(NpyReader):
    def read(self, key, kind, box):
        return super().read(key, kind, box).double()

class ReadsFlat(Npy):
    open = classmethod(lambda cls, directory, *, once=False: Flat(directory))

class ReadsDouble(Npy):
    open = classmethod(lambda cls, directory, *, once=False: Double(directory))

class WritesFlat(Npy):
    def writer(self, directory, source, record):
        made = NpyWriter(directory, source, record)
        made.reopen = lambda: Flat(directory)
        return made

class Unsaid(Format):
    pass
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ReadsFlat", "embedding.word_embeddings.weight as ({n},) torch.float32, not as {shape}"),
        ("ReadsDouble", "as {shape} torch.float64, not as {shape} torch.float32"),
        ("WritesFlat", "embedding.word_embeddings.weight as ({n},) torch.float32, not as {shape}"),
        ("Unsaid", "wrong_formats:Unsaid does not say its mark, open, title, writer"),
    ],
)
def test_mistakes_of_its_author(
    name: str,
    says: str,
    source: Path,
    there: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A reader that returns another shape was verified: the bytes are the same."""
    (tmp_path / "wrong_formats.py").write_text(WRONG)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wrong_formats", raising=False)
    path = f"wrong_formats:{name}"
    writes = name == "WritesFlat"
    where, option = (source, "--format") if writes else (there, "--source-format")
    assert command("reshard", where, tmp_path / "x", option, path) == 2
    said = capsys.readouterr().err
    shape = tuple(np.load(there / "embedding.word_embeddings.weight" / "main_param.npy").shape)
    assert says.format(shape=shape, n=shape[0] * shape[1]) in said and said.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_its_name_is_forgotten(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("inspect", there.parent) == 2
    said = capsys.readouterr().err
    assert f"{there} is not a complete checkpoint; complete ones: none" in said
    assert said.endswith("a format that is not built in must be named, as the source format\n")


@pytest.mark.parametrize("load", [False, True])
def test_a_run_begins_from_it(load: bool, there: Path, tmp_path: Path) -> None:
    named = {"load": str(there)} if load else {"initial": str(there.parent)}
    config = RunConfig(
        model=GPT,
        train=TrainSection(seq_length=16, micro_batch_size=8, global_batch_size=8),
        optimizer=OptimizerSection(),
        checkpoint=CheckpointSection(source_format=NPY, save=str(tmp_path / "own"), **named),
    )
    choice, start, _ = find_start(config, config.resolve(1))
    assert choice.path == there and start is not None
    assert (start.resumes, start.step) == ((True, 10) if load else (False, 0))
    assert start.source.format == "npy" and start.source.kinds(FC1)[1:] == ("exp_avg", "exp_avg_sq")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--format", "nothing"), "--format='nothing' is not a checkpoint format"),
        (("--format", "extend.nothing:Npy"), "--format=extend.nothing:Npy cannot be imported"),
        (("--format", "pathlib:Path"), "--format=pathlib:Path is not a checkpoint format: a"),
        (("--format", f"{{format: '{NPY}', zip: true}}"), "zip is not an option of extend.npy:Npy"),
        (
            ("--format", "{format: huggingface, max_shard_size: 0}"),
            "--format.max_shard_size=0.0 must be more than 0",
        ),
        (
            ("--format", "{format: huggingface, side_files: /nowhere}"),
            "--format.side_files=/nowhere is not a directory",
        ),
        (
            ("--format", NPY, "--tensor-model-parallel-size", 2),
            "format is not cut for a layout",
        ),
        (("--format", NPY, "--precision", "bf16"), "bf16 is not written in the npy format; fp32"),
        (("--source-format", "torch"), "holds neither"),
    ],
)
def test_refused(
    options: tuple, says: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = tmp_path if says == "holds neither" else source
    assert command("reshard", where, tmp_path / "x", *options) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
    assert not (tmp_path / "x").exists()
