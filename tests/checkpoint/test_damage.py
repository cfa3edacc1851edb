"""Damaged, hostile and missing files: one line that names the file, and never a wrong value."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from megatron_grow.checkpoint.archive import Archive
from megatron_grow.checkpoint.huggingface.files import read_object, stored_names
from megatron_grow.checkpoint.layout import MANIFEST, RECORD, TRACKER
from megatron_grow.checkpoint.lock import held
from megatron_grow.checkpoint.record import read_record
from megatron_grow.checkpoint.root import latest, locate, saved_steps
from megatron_grow.checkpoint.torch_dist.chunk_reader import ChunkReader
from megatron_grow.checkpoint.torch_dist.names import COMPLETE
from megatron_grow.checkpoint.torch_dist.reader import TorchDistReader
from megatron_grow.convert.command import main as convert
from megatron_grow.growth import at_load
from megatron_grow.growth.plan import resharding
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.boxes import full
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.piece import Piece
from tests.checkpoint.still import SMALL, TENSORS, read, values, write
from tests.distributed import run_ranks

METADATA, CHUNKS = ".metadata", "__0_0.distcp"


def save_steps(root: Path, steps: list[int], keep_last: int = 0) -> None:
    for step in steps:
        write(root, step, seed=step, keep_last=keep_last)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    run_ranks(1, save_steps, root, [10, 20, 30])
    return root


@pytest.fixture
def root(saved: Path, tmp_path: Path) -> Path:
    """Checkpoints of steps 10, 20 and 30, to be damaged; no manifest gives the damage away."""
    return shutil.copytree(saved, tmp_path / "checkpoints", ignore=shutil.ignore_patterns(MANIFEST))


def test_the_manifest_gives_damage_away(saved: Path, tmp_path: Path) -> None:
    """Even one that leaves a file readable, as a digit that changes in a number does."""
    for name, opens in ((RECORD, read_record), (METADATA, ChunkReader)):
        checkpoint = shutil.copytree(saved / "iter_0000010", tmp_path / name)
        content = bytearray((checkpoint / name).read_bytes())
        content[len(content) // 2] ^= 1
        (checkpoint / name).write_bytes(content)
        refused(lambda opens=opens, at=checkpoint: opens(at), checkpoint / name, "digest")
    (checkpoint / MANIFEST).write_text('{"files": 1}')
    refused(lambda: read_record(checkpoint), checkpoint / MANIFEST, "damaged")


def refused(action: Callable[[], object], *parts: object) -> None:
    """``action`` fails with one line that has all ``parts``."""
    with pytest.raises(UserError) as error:
        action()
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


def fails(action: Callable[[], object]) -> bool:
    try:
        action()
    except UserError:
        return True
    return False


def read_all(path: Path) -> None:
    reader = ChunkReader(path)
    for key, tensor in TENSORS.items():
        reader.read(key, tuple((0, size) for size in tensor.checkpoint_shape))


def test_missing_files(saved: Path, tmp_path: Path) -> None:
    for name in (METADATA, CHUNKS, RECORD):
        checkpoint = shutil.copytree(saved / "iter_0000010", tmp_path / f"without{name}")
        (checkpoint / name).unlink()
        reads = read_record if name == RECORD else ChunkReader
        refused(lambda reads=reads, at=checkpoint: reads(at), checkpoint / name, "missing")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_files(root: Path, share: float) -> None:
    for name in (METADATA, CHUNKS, RECORD):
        path = root / "iter_0000010" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        reads = read_record if name == RECORD else ChunkReader
        refused(lambda reads=reads, at=path: reads(at.parent), path)
        path.write_bytes(whole)
    assert read(root / "iter_0000010") == 10


def test_a_flipped_bit_in_any_tensor_is_found(root: Path) -> None:
    """torch alone would hand out the wrong value."""
    path = root / "iter_0000010" / CHUNKS
    whole = path.read_bytes()
    for key, tensor in TENSORS.items():
        stored = values(tensor, MAIN_PARAM, seed=10).numpy().tobytes()
        damaged = bytearray(whole)
        damaged[whole.index(stored) + len(stored) // 2] ^= 0x10
        path.write_bytes(damaged)
        refused(lambda: read_all(path.parent), path, key)


def test_a_flipped_bit_anywhere_is_found_or_harmless(root: Path) -> None:
    path = root / "iter_0000010" / CHUNKS
    whole = path.read_bytes()
    found = 0
    for where in np.random.default_rng(0).integers(0, len(whole), 30):
        damaged = bytearray(whole)
        damaged[where] ^= 0x10
        path.write_bytes(damaged)
        try:
            assert read(path.parent) == 10
        except UserError as error:
            found += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert found > 15


class _Call:
    """Pickles as a call of ``module.name(argument)``, which unpickling would make."""

    def __init__(self, module: str, name: str, argument: str) -> None:
        self.call = (module, name, argument)

    def bytes(self) -> bytes:
        text = [b"X" + struct.pack("<I", len(part)) + part.encode() for part in self.call]
        # PROTO 4; two strings; STACK_GLOBAL; MARK; argument; TUPLE; REDUCE; STOP
        return b"\x80\x04" + text[0] + text[1] + b"\x93(" + text[2] + b"tR."

    def bytes_of_protocol_2(self) -> bytes:
        """The one that torch.load reads."""
        module, name, argument = (part.encode() for part in self.call)
        text = b"X" + struct.pack("<I", len(argument)) + argument
        return b"\x80\x02c" + module + b"\n" + name + b"\n(" + text + b"tR."


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("posix", "system"),
        ("builtins", "eval"),
        ("pathlib", "os.system"),
        ("collections", "abc.sys.exit"),
        ("torch", "load"),
        ("torch.distributed.checkpoint.filesystem", "os.system"),
        ("torch.distributed.checkpoint.format_utils", "torch_save_to_dcp"),
    ],
)
def test_hostile_metadata_runs_nothing(root: Path, module: str, name: str) -> None:
    checkpoint, witness = root / "iter_0000010", root / "witness"
    hostile = _Call(module, name, f"touch {witness}").bytes()
    (checkpoint / METADATA).write_bytes(hostile)
    refused(lambda: ChunkReader(checkpoint), checkpoint / METADATA, module, "not allowed")
    assert not witness.exists()


def test_a_hostile_chunk_runs_nothing(root: Path) -> None:
    checkpoint, witness = root / "iter_0000010", root / "witness"
    pickled = _Call("posix", "system", f"touch {witness}").bytes_of_protocol_2()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3")
        file.writestr("archive/byteorder", "little")
    metadata = pickle.loads((checkpoint / METADATA).read_bytes())
    index, chunk = next(
        (index, chunk)
        for index, chunk in metadata.storage_data.items()
        if index.offset is not None  # a tensor's, not an object's
    )
    chunk.offset, chunk.length = (checkpoint / CHUNKS).stat().st_size, len(archive.getvalue())
    (checkpoint / METADATA).write_bytes(pickle.dumps(metadata))
    with (checkpoint / CHUNKS).open("ab") as file:
        file.write(archive.getvalue())
    refused(lambda: read_all(checkpoint), checkpoint / CHUNKS, index.fqn, "else than a tensor")
    assert not witness.exists()


@pytest.mark.parametrize("content", [[], {"storage_data": {}}, None])
def test_metadata_of_something_else(root: Path, content: object) -> None:
    path = root / "iter_0000010" / METADATA
    path.write_bytes(pickle.dumps(content))
    refused(lambda: ChunkReader(path.parent), path)


def test_a_record_that_is_no_record(root: Path) -> None:
    path = root / "iter_0000010" / RECORD
    values = json.loads(path.read_text())
    for wrong in ({}, [], {**values, "unknown": 1}, {**values, "growths": [{"when": 1}]}):
        path.write_text(json.dumps(wrong))
        refused(lambda: read_record(path.parent), path, "damaged")
    path.write_text(json.dumps({**values, "format": 2}))
    refused(lambda: read_record(path.parent), path, "format 2")


def test_a_record_of_another_model(root: Path) -> None:
    """Tensors that are missing, of another shape, or too many."""
    path = root / "iter_0000010"
    record = json.loads((path / RECORD).read_text())
    for field, value, *said in (
        ("num_layers", 2, "shape", "decoder.layers.", "(2, "),
        ("qk_layernorm", True, "has no", "q_layernorm"),
        ("share_embeddings_and_output_weights", False, "has no", "output_layer.weight"),
        ("position_embedding_type", "rope", "holds embedding.position_embeddings.weight"),
    ):
        model = {**record["model"], field: value}
        (path / RECORD).write_text(json.dumps({**record, "model": model}))
        refused(lambda: TorchDistReader(path), path, *said)


def test_a_checkpoint_without_the_moments_of_an_optimizer(root: Path) -> None:
    source = TorchDistReader(root / "iter_0000010")
    target = [
        Piece(key, "exp_avg_sq", full(tensor.shape), torch.empty(tensor.shape), owned=True)
        for key, tensor in TENSORS.items()
    ]
    refused(lambda: at_load.load(resharding(SMALL), source, target), source.path, "exp_avg_sq")


# The tracker, and what is kept.


def test_the_tracker_names_the_newest(root: Path) -> None:
    assert (root / TRACKER).read_text() == "30"
    assert latest(root) == locate(root) == root / "iter_0000030"
    assert locate(root / "iter_0000020") == root / "iter_0000020"
    assert [read(root / f"iter_00000{step}") for step in (10, 20, 30)] == [10, 20, 30]


def test_the_tracker_decides_not_the_directories(root: Path) -> None:
    """Who writes an older step into it goes back to that step."""
    (root / TRACKER).write_text("20\n")
    assert latest(root) == root / "iter_0000020"


@pytest.mark.parametrize("text", ["25", "newest", "", "\udcff"])
def test_a_tracker_that_names_nothing_complete(root: Path, text: str) -> None:
    (root / TRACKER).write_bytes(text.encode(errors="surrogateescape"))
    (root / "iter_0000020" / COMPLETE).unlink()
    shutil.copytree(root / "iter_0000010", root / "iter_0000010_backup")
    refused(lambda: latest(root), root / TRACKER, "complete ones: 10, 30")


def test_locating_what_is_not_there(root: Path) -> None:
    refused(
        lambda: locate(root / "nowhere", "checkpoint.load="), root / "nowhere", "checkpoint.load"
    )
    (root / "iter_0000010" / COMPLETE).unlink()
    refused(lambda: locate(root / "iter_0000010"), "iter_0000010", COMPLETE, TRACKER)
    assert latest(root / "iter_0000010") is None


def test_a_lost_tracker_is_no_empty_directory(root: Path) -> None:
    (root / TRACKER).unlink()
    said = (root / TRACKER, "missing", "complete ones: 10, 20, 30")
    refused(lambda: latest(root), *said)
    refused(lambda: locate(root), *said)


@pytest.mark.parametrize("name", [TRACKER, RECORD, MANIFEST, METADATA, CHUNKS])
def test_what_is_no_file_is_not_waited_for(saved: Path, tmp_path: Path, name: str) -> None:
    """A FIFO blocks whoever opens it as a file."""
    root = shutil.copytree(saved, tmp_path / "checkpoints")
    path = root / name if name == TRACKER else root / "iter_0000030" / name
    for make, kind in ((Path.mkdir, "a directory"), (os.mkfifo, "a FIFO")):
        path.unlink() if path.is_file() else path.rmdir()
        make(path)
        refused(lambda: TorchDistReader(locate(root)), path, kind)


def test_files_of_other_formats_are_not_waited_for(tmp_path: Path) -> None:
    opens = {"common.pt": Archive, "config.json": read_object, "model.safetensors": stored_names}
    for name, opening in opens.items():
        os.mkfifo(tmp_path / name)
        refused(lambda it=opening, at=tmp_path / name: it(at), tmp_path / name, "a FIFO")


# Files of two saves.


def test_a_shard_of_another_step_is_not_taken(saved: Path, tmp_path: Path) -> None:
    """Half an rsync: the shapes agree, the sizes and all checksums too."""
    checkpoint = shutil.copytree(saved / "iter_0000010", tmp_path / "iter_0000010")
    other = saved / "iter_0000020" / CHUNKS
    assert other.stat().st_size == (checkpoint / CHUNKS).stat().st_size
    shutil.copy(other, checkpoint / CHUNKS)
    refused(lambda: read_all(checkpoint), checkpoint / CHUNKS, "another checkpoint")
    source = TorchDistReader(checkpoint)
    assert sum(fails(lambda part=part: source.check_shards(part, 3)) for part in range(3)) == 1
    assert convert(["inspect", str(checkpoint), "--check"]) != 0
    with (checkpoint / CHUNKS).open("ab") as file:
        file.write(b"more")
    refused(lambda: ChunkReader(checkpoint), checkpoint / CHUNKS, MANIFEST, "bytes")


def save_apart(root: Path) -> str:
    """Two ranks with a directory each, as on disks of two nodes."""
    try:
        write(root / str(dist.get_rank()), 10, seed=1)
    except UserError as error:
        return str(error)
    return "saved"


def test_half_a_checkpoint_is_not_published(tmp_path: Path) -> None:
    for message in run_ranks(2, save_apart, tmp_path):
        assert "not the same directory on all ranks" in message and "__1_0.distcp" in message
    assert saved_steps(tmp_path / "0") == []
    assert not (tmp_path / "0" / TRACKER).exists()


def save_without_the_lock(root: Path) -> str:
    with held(root) as me:
        write(root, 40, seed=1, holder=me)
        (lock,) = root.glob(".lock.*")
        lock.unlink()
        try:
            write(root, 50, seed=1, holder=me)
        except UserError as error:
            return str(error)
    return "saved"


def test_a_run_whose_directory_was_taken_over_saves_nothing(root: Path) -> None:
    (message,) = run_ranks(1, save_without_the_lock, root)
    assert "lock" in message
    assert saved_steps(root) == [10, 20, 30, 40]


# What is kept.


def test_later_steps_are_not_this_runs_past(root: Path) -> None:
    """What was just written survives; later ones are neither counted nor deleted."""
    run_ranks(1, save_steps, root, [15], 2)
    assert saved_steps(root) == [10, 15, 20, 30]
    assert latest(root) == root / "iter_0000015"
    run_ranks(1, save_steps, root, [16, 17], 2)
    assert saved_steps(root) == [16, 17, 20, 30]


@pytest.mark.parametrize(
    ("keep_last", "kept"), [(0, [10, 20, 30, 40]), (1, [40]), (2, [30, 40]), (9, [10, 20, 30, 40])]
)
def test_keep_last(root: Path, keep_last: int, kept: list[int]) -> None:
    (root / "iter_0000005").mkdir()  # incomplete: not counted, not touched
    run_ranks(1, save_steps, root, [40], keep_last)
    assert saved_steps(root) == kept
    assert [read(root / f"iter_00000{step}") for step in kept] == kept
    expected = {f"iter_00000{step}" for step in kept} | {TRACKER, "iter_0000005"}
    assert {path.name for path in root.iterdir()} == expected
    assert latest(root) == root / "iter_0000040"
