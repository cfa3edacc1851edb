"""A conversion that cannot be, or does not, end: one line, nothing lost, nothing half there."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_grow.checkpoint import copy
from megatron_grow.checkpoint.layout import TRACKER
from megatron_grow.checkpoint.root import saved_steps
from megatron_grow.checkpoint.staging import partial
from megatron_grow.checkpoint.torch_dist.names import COMPLETE
from megatron_grow.checkpoint.torch_dist.reader import TorchDistReader
from megatron_grow.checkpoint.torch_dist.writer import TorchDistWriter
from megatron_grow.convert import conversion
from megatron_grow.convert.synthetic import SyntheticReader, write
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.boxes import Box
from tests.checkpoint.test_crash import kill_before_change
from tests.convert.toy import GPT, LLAMA, by_torch, command, equal
from tests.distributed import run_ranks

STEP = "iter_0000010"
TOOL = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("source"), SyntheticReader(LLAMA))


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *argv: object, says: tuple[object, ...]) -> None:
    """The command fails with one line that has all of ``says``."""
    assert command(*argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    for part in says:
        assert str(part) in said, said


def test_what_is_there_stays(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"
    assert command("reshard", source, there) == 0
    before = tree(there)
    refused(capsys, "reshard", source, there, says=(there / STEP, "exists"))
    (there / STEP).rename(there / "iter_0000005")
    refused(capsys, "reshard", source, there, says=(there, "another run"))
    assert {name.split("/")[-1] for name in tree(there)} == {name.split("/")[-1] for name in before}
    (tmp_path / "file").write_text("")
    refused(capsys, "reshard", source, tmp_path / "file" / "x", says=("not a directory",))
    refused(capsys, "reshard", tmp_path / "nowhere", tmp_path / "x", says=("nowhere",))
    inside = f"{source} would lie in {source}, which is read"
    refused(capsys, "reshard", source.parent, source.parent, says=(inside,))
    refused(capsys, "reshard", source, source / "x", says=(source / "x", "which is read"))
    assert not (source / "x").exists()


@pytest.mark.parametrize(
    ("verb", "option", "value", "says"),
    [
        ("reshard", "--threads", "0", "at least 1"),
        ("reshard", "--threads", "two", "two must be int"),
        ("reshard", "--threads", "1000000000", "at most 1024"),
        ("reshard", "--tensor-model-parallel-size", "0", "0 must be at least 1"),
        ("import-hf", "--pipeline-model-parallel-size", "1.5", "1.5 must be int"),
        ("grow", "--seed", "-1", "-1 must be at least 0"),
        ("grow", "--seed", "4294967296", "at most 4294967295"),
        ("grow", "--grow", "", "'' must be a path, not empty"),
        ("export-hf", "--max-shard-size", "0", "more than 0"),
        ("export-hf", "--max-shard-size", "nan", "nan must be a finite number"),
        ("export-hf", "--max-shard-size", "inf", "inf must be a finite number"),
        ("export-hf", "--max-shard-size", "1e300", "at most"),
    ],
)
def test_options_that_cannot_be(
    verb: str, option: str, value: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        command(verb, "a", "b", option, value)
    assert left.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option}" in last and says in last


def test_an_empty_path_is_not_the_working_directory(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    """As an unset variable of a shell leaves it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        command("reshard", source, "")
    assert "argument DST: '' must be a path, not empty" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_layouts_that_do_not_divide(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, number, says in (
        ("--tensor-model-parallel-size", 4, "num_query_groups"),
        ("--pipeline-model-parallel-size", 3, "num_layers"),
    ):
        refused(capsys, "reshard", source, tmp_path / "x", option, number, says=(option, says))
    virtual = ("--pipeline-model-parallel-size", 2, "--virtual-pipeline-model-parallel-size", 3)
    refused(capsys, "reshard", source, tmp_path / "x", *virtual, says=("virtual", "3", "2 layers"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: TorchDistWriter, task: int, blocks: object) -> None:
        (self.directory / "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.directory / "half"))

    with monkeypatch.context() as patch:
        patch.setattr(TorchDistWriter, "write", full)
        refused(capsys, "reshard", source, tmp_path / "a" / "b", says=("No space left", "half"))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(
        conversion.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})
    )
    refused(capsys, "reshard", source, tmp_path / "a" / "b", says=("free", "needs"))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(self: TorchDistWriter, task: int, blocks: object) -> None:
        (self.directory / "half").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(TorchDistWriter, "write", interrupted)
    assert command("reshard", source, tmp_path / "a" / "b") == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_seen_enough(source: Path) -> None:
    """As ``head`` does, it closes the pipe."""
    tool = [sys.executable, str(TOOL), "inspect", str(source)]
    process = subprocess.Popen(tool, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.close()
    said = process.stderr.read()
    assert (process.wait(60), said) == (128 + signal.SIGPIPE, b"")


def test_what_is_read_back_differs(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that returns other bytes than it was given."""

    def reopen(self: TorchDistWriter) -> TorchDistReader:
        reader = read_back(self)
        stored = reader.read_stored

        def other(name: str, key: str, box: Box) -> torch.Tensor:
            return stored(name, key, box) + ("exp_avg_sq" in name)

        monkeypatch.setattr(reader, "read_stored", other)
        return reader

    read_back = TorchDistWriter.reopen
    monkeypatch.setattr(TorchDistWriter, "reopen", reopen)
    refused(capsys, "reshard", source, tmp_path / "a", says=("exp_avg_sq", "not what was written"))
    assert not (tmp_path / "a").exists()
    assert command("reshard", source, tmp_path / "a", "--no-verify") == 0


def convert_and_die(source: str, target: str, number: int) -> None:
    kill_before_change(number)
    command("grow", source, target, "--grow", Path(target).parent / "grow.yaml", "--threads", 1)


def test_killed_before_each_change_of_the_file_system(source: Path, tmp_path: Path) -> None:
    """The source is untouched, nothing looks whole before it is, and a second run ends it."""
    (tmp_path / "grow.yaml").write_text("{model: {num_layers: 6}, grow: {depth: copying_stack}}")
    assert command("grow", source, tmp_path / "truth", "--grow", tmp_path / "grow.yaml") == 0
    truth, before = by_torch(tmp_path / "truth" / STEP), tree(source)
    whole, number = [], 0
    while True:
        number += 1
        target = tmp_path / str(number)
        try:
            run_ranks(1, convert_and_die, str(source), str(target), number)
            break
        except AssertionError as error:
            assert f"{-signal.SIGKILL}" in str(error)
        assert tree(source) == before
        whole.append(saved_steps(target) == [10])
        if whole[-1]:
            assert equal(by_torch(target / STEP), truth)
            (target / STEP).rename(target / ".gone")  # so that it can be written again
            (target / TRACKER).unlink(missing_ok=True)
        assert command("grow", source, target, "--grow", tmp_path / "grow.yaml") == 0
        assert equal(by_torch(target / STEP), truth)
        assert not partial(target / STEP).exists()
    assert number > 8
    assert whole == sorted(whole)


def test_an_empty_directory_is_a_destination(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb, final in (("export-hf", tmp_path / "a"), ("reshard", tmp_path / "b" / STEP)):
        final.mkdir(parents=True)
        target = tmp_path / final.relative_to(tmp_path).parts[0]
        assert command(verb, source, target) == 0
        assert any(final.iterdir())
        assert [path.name for path in target.glob(".*")] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    (tmp_path / "link").symlink_to(tmp_path / "c")
    (tmp_path / "c").mkdir()
    assert command("export-hf", source, tmp_path / "link") == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "c" / "config.json").exists()
    (tmp_path / "file").touch()
    for name in ("a", "c", "file"):
        refused(capsys, "export-hf", source, tmp_path / name, says=(tmp_path / name, "exists"))
    refused(capsys, "export-hf", source, "/proc", says=("/proc is a mount point",))


def test_an_empty_destination_stays_when_the_conversion_fails(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(conversion, "write_manifest", lambda *arguments: _raise())
    refused(capsys, "export-hf", source, tmp_path / "a", says=("a file of rank 1",))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert list((tmp_path / "a").iterdir()) == []


def test_the_lock_can_be_had_on_nfs(tmp_path: Path, monkeypatch) -> None:
    """Which locks for writing only what is open for writing, as POSIX record locks do."""
    descriptors = []

    def flock(descriptor: int, operation: int) -> None:
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if operation & fcntl.LOCK_EX and flags == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        descriptors.append(descriptor)

    monkeypatch.setattr(fcntl, "flock", flock)
    with conversion._staged(tmp_path / "a" / "final", 0):
        assert len(descriptors) == 1
    assert list(tmp_path.iterdir()) == []

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"\.final\.lock cannot be locked: No locks available"):
        conversion._staged(tmp_path / "final", 0).__enter__()


def test_two_conversions_into_one_place(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    final = tmp_path / "a" / STEP
    with conversion._staged(final, 0):
        (partial(final) / "of the first").write_text("")
        refused(capsys, "reshard", source, tmp_path / "a", says=("another conversion",))
        assert (partial(final) / "of the first").exists()
    assert command("reshard", source, tmp_path / "a") == 0


def _raise() -> bytes:
    raise OSError(errno.EIO, os.strerror(errno.EIO), "a file of rank 1")


def test_one_process_fails(tmp_path: Path) -> None:
    source = write(tmp_path / "a", SyntheticReader(GPT))
    assert run_ranks(2, fails_on_one_of_two, str(source), str(tmp_path / "b")) == [2, 2]
    assert not (tmp_path / "b").exists()


def fails_on_one_of_two(source: str, target: str) -> int:
    copy._TASK_BYTES = 1  # a task for each block, so that both have some
    if os.environ["RANK"] == "1":
        copy.digest = lambda values: _raise()
    return command("reshard", source, target, "--threads", 1)


def test_growths_that_cannot_be(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "grow.yaml"
    for content, *says in (
        ("[1", "not YAML"),
        ("{model: {}, model: {}}", "the key 'model' stands twice"),
        ("{grow: {depth: zero}}", "model:"),
        ("[]", "model:"),
        ("{model: {num_layers: 6}, grow: {}, more: 1}", "more", "unknown"),
        ("{model: {num_layers: 6}}", "grow.yaml.grow.depth", "missing"),
        ("{model: {num_layers: 2}, grow: {depth: zero}}", "num_layers", "2"),
        ("{model: {num_layer: 2}, grow: {depth: zero}}", "num_layer"),
        ("{model: {num_layers: 6}, grow: {depth: copying}}", "copying"),
        ("{model: {num_layers: 6}, grow: {depth: zero, mask_iters: 5}}", "mask_iters=5"),
        ("{model: {hidden_size: 24}, grow: {width: hypercloning}}", "width", "16 or 32"),
    ):
        path.write_text(content)
        refused(capsys, "grow", source, tmp_path / "x", "--grow", path, says=tuple(says))
    refused(
        capsys, "grow", source, tmp_path / "x", "--grow", tmp_path / "none", says=("not there",)
    )
    assert not (tmp_path / "x").exists()


def test_a_dry_run_writes_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grow.yaml").write_text("{model: {num_layers: 8}, grow: {depth: copying_stack}}")
    options = ("--grow", tmp_path / "grow.yaml", "--dry-run")
    assert command("grow", source, tmp_path / "x", *options) == 0
    said = capsys.readouterr().out
    record = json.loads((source / "megatron_grow.json").read_text())
    assert record["model"]["num_layers"] == 4
    written = sum(v.nbytes for v in by_torch(source).values())
    layers = sum(v.nbytes for k, v in by_torch(source).items() if "decoder.layers." in k)
    assert f"writes {(written + layers) / 1e9:.2f} GB" in said
    assert f"reads {(written + layers) / 1e9:.2f} GB" in said
    assert "peak memory" in said
    assert not (tmp_path / "x").exists() and (source / COMPLETE).exists()
    (tmp_path / "x" / STEP / "y").mkdir(parents=True)
    refused(capsys, "grow", source, tmp_path / "x", *options, says=(tmp_path / "x", "exists"))
