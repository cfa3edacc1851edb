"""An interrupted preprocessing goes on, and its output is that of an uninterrupted one."""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from megatron_grow.data.preprocess import run as preprocess
from megatron_grow.data.preprocess import sentences, splits_writer
from megatron_grow.data.preprocess.splits_writer import SplitsWriter
from megatron_grow.inputs.errors import UserError
from tests.data.corpora import assert_same, run, write_json_lines

TOOL = Path(__file__).parents[2] / "tools" / "preprocess_data.py"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Three files of four batches each."""
    for number in range(3):
        texts = [f"{number} {line} One. Two. " * 600 for line in range(8)]
        write_json_lines(tmp_path / f"in/{number}.jsonl", texts)
    read = partial(preprocess.read_batches, batch_bytes=16_000)
    monkeypatch.setattr(preprocess, "read_batches", read)
    monkeypatch.setattr(sentences, "_TRAINING_CHARACTERS", 9_999)
    return tmp_path


@pytest.fixture
def interrupt(monkeypatch) -> Callable[..., None]:
    """Run until some batches are written, then as if Ctrl-C were pressed."""

    def interrupted(batches: int, **fields: object) -> None:
        write, left = SplitsWriter.write, [batches]

        def stop(writer, batch):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            write(writer, batch)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(SplitsWriter, "write", stop)
            run(**fields)

    return interrupted


def resume(**fields: object) -> tuple[dict[str, str], str]:
    """Run again; the output prefixes, and what was printed."""
    console = Console(record=True, file=io.StringIO(), width=999)
    return run(console, **fields), console.export_text()


@pytest.mark.parametrize(
    "fields",
    [
        {"valid_fraction": 0.2, "append_eod": True},
        {"train_tokenizer": 300},
        {"split_sentences": True},
    ],
    ids=str,
)
def test_any_run_goes_on(folder, interrupt, fields):
    fields = {"input": [folder / "in"], "workers": 2, **fields}
    whole = run(output_prefix=folder / "whole", **fields)
    interrupt(3, output_prefix=folder / "c", **fields)
    interrupt(2, output_prefix=folder / "c", **fields)
    assert not list(folder.glob("c*_text_*.idx")) and not (folder / "c-tokenizer.json").exists()
    prefixes, printed = resume(output_prefix=folder / "c", **fields)
    assert "goes on after 10 documents" in printed
    assert ("Training a BPE" in printed) is False
    assert "read 24 documents (24 of JSON lines) in 3 files: 3 .jsonl" in printed
    for part, prefix in prefixes.items():
        for suffix in (".bin", ".idx"):
            assert Path(prefix + suffix).read_bytes() == Path(whole[part] + suffix).read_bytes()
    assert not list(folder.glob("*.partial"))


@pytest.mark.parametrize("moved", range(7))
def test_a_run_killed_while_it_moves_its_output_is_finished_by_the_next(folder, moved, monkeypatch):
    fields = {"input": [folder / "in"], "valid_fraction": 0.2, "train_tokenizer": 300}
    replace, left = os.replace, [moved]

    def stop(source, target):
        if Path(target).parent == folder and not left[0]:
            raise KeyboardInterrupt
        left[0] -= Path(target).parent == folder
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        run(output_prefix=folder / "c", **fields)
    assert len(list(folder.glob("c*"))) == moved + 1  # and the directory of the rest
    assert not (folder / "c_valid_text_document.idx").exists()
    prefixes, printed = resume(output_prefix=folder / "c", **fields)
    assert "goes on after 24 documents" in printed
    assert "read 24 documents (24 of JSON lines) in 3 files: 3 .jsonl" in printed
    whole = run(output_prefix=folder / "whole", **fields)
    for part, prefix in prefixes.items():
        for suffix in (".bin", ".idx"):
            assert Path(prefix + suffix).read_bytes() == Path(whole[part] + suffix).read_bytes()
    assert (folder / "c-tokenizer.json").read_bytes() == (
        folder / "whole-tokenizer.json"
    ).read_bytes()
    assert not list(folder.glob("*.partial"))
    assert run(output_prefix=folder / "c", **fields) == prefixes, "it is done"


def test_what_was_moved_and_then_deleted_is_missed(folder, monkeypatch):
    fields = {"input": [folder / "in"], "output_prefix": folder / "c"}
    replace = os.replace

    def stop(source, target):
        replace(source, target)
        if str(target).endswith("document.bin"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        run(**fields)
    (folder / "c_text_document.bin").unlink()
    with pytest.raises(
        UserError, match=r"c_text_document\.bin is gone; delete .*\.partial to start"
    ):
        run(**fields)


def test_what_was_made_of_changed_files_is_made_again(folder, interrupt, monkeypatch):
    monkeypatch.setattr(splits_writer, "MARK_SECONDS", 0)
    fields = {"input": [folder / "in"], "output_prefix": folder / "c"}
    interrupt(5, **fields)  # in the second file
    write_json_lines(folder / "in/1.jsonl", ["changed"])
    prefixes, printed = resume(**fields)
    assert "goes on after 8 documents" in printed  # the first file's
    assert_same(prefixes, run(**{**fields, "output_prefix": folder / "d"}))


def test_other_settings_are_refused(folder, interrupt):
    fields = {"input": [folder / "in"], "output_prefix": folder / "c"}
    interrupt(2, append_eod=True, **fields)
    message = r"c_text_document\.partial holds an interrupted run with append_eod=True"
    with pytest.raises(UserError, match=message):
        run(**fields)
    prefixes, printed = resume(overwrite=True, **fields)
    assert "goes on" not in printed
    assert_same(prefixes, run(**{**fields, "output_prefix": folder / "d"}))


def test_another_punkt_is_another_setting(folder, interrupt, monkeypatch):
    """The first run says how to install the published one, and may be interrupted for it."""
    fields = {"input": [folder / "in"], "output_prefix": folder / "c", "split_sentences": True}
    monkeypatch.setattr(sentences, "installed_splitter", lambda language: None)
    interrupt(3, **fields)
    published = sentences.train_splitter(["One. Two. "])
    published.source = "Punkt, published for english"
    monkeypatch.setattr(sentences, "installed_splitter", lambda language: published)
    with pytest.raises(UserError, match=r"an interrupted run with split_sentences=english; give"):
        run(**fields)
    assert run(**fields, overwrite=True)


def test_a_bad_line_is_named_and_can_be_passed(folder):
    """After hours, too: what was done until then is kept."""
    with (folder / "in/2.jsonl").open("a") as file:
        file.write("{}\n" * 9 + '{"text": "end"}\n{"text": ["x"]}\nx\n{}\n')
    fields = {"input": [folder / "in"], "output_prefix": folder / "c"}
    with pytest.raises(UserError) as error:
        run(**fields)
    message = str(error.value)
    assert message.startswith(f"{folder}/in/2.jsonl, line 9: no key 'text'; its keys are none; ")
    assert "--on-bad-line skip" in message and "c_text_document.partial" in message
    prefixes, printed = resume(on_bad_line="skip", **fields)
    assert "goes on after" in printed
    assert "12 bad documents left out, first:" in printed
    places = [line for line in printed.splitlines() if line.startswith("  ")]
    assert len(places) == 10
    assert places[-1].endswith("2.jsonl, line 19: the value of 'text' must be a string, not list")
    sidecar = json.loads(Path(prefixes["train"] + ".json").read_text())
    assert sidecar["documents"] == 25


def test_a_damaged_file_is_read_as_far_as_it_is_whole(folder):
    data = gzip.compress(
        os.urandom(100_000).hex().join(['{"text": "a"}\n{"text": "', '"}']).encode()
    )
    (folder / "in/0.jsonl.gz").write_bytes(data[:-50_000])
    fields = {"input": [folder / "in"], "output_prefix": folder / "c"}
    with pytest.raises(UserError, match=r"0\.jsonl\.gz, line 2: cannot be read: "):
        run(**fields)
    prefixes, printed = resume(on_bad_line="skip", **fields)
    assert "1 bad documents left out, first:" in printed
    assert json.loads(Path(prefixes["train"] + ".json").read_text())["documents"] == 25


def test_a_killed_worker_is_one_line(folder, monkeypatch):
    fields = {"input": [folder / "in"], "output_prefix": folder / "c", "workers": 2}
    write = SplitsWriter.write

    def kill_worker(writer, batch):
        write(writer, batch)
        for child in psutil.Process().children():
            with suppress(psutil.ZombieProcess):
                if "spawn_main" in " ".join(child.cmdline()):
                    child.kill()

    with monkeypatch.context() as patch:
        patch.setattr(SplitsWriter, "write", kill_worker)
        with pytest.raises(UserError, match="one of the 2 worker processes was killed") as error:
            run(**fields)
    assert "\n" not in str(error.value)
    assert "goes on after" in resume(**fields)[1]


def test_a_full_disk_loses_only_what_was_not_marked(folder, monkeypatch):
    fields = {"input": [folder / "in"], "output_prefix": folder / "c"}
    monkeypatch.setattr(splits_writer, "MARK_SECONDS", 0)
    write, batches = SplitsWriter.write, []

    def fill(writer, batch):
        batches.append(batch)
        if len(batches) > 2:
            raise OSError(28, "No space left on device")
        write(writer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(SplitsWriter, "write", fill)
        with pytest.raises(UserError, match="No space left on device; what was done is kept in"):
            run(**fields)
    assert "goes on after 4 documents" in resume(**fields)[1]


def test_a_disk_that_is_full_at_once_keeps_nothing(folder, monkeypatch):
    opened = Path.open

    def refuse(path, *args, **options):
        if path.name == "lock":
            raise OSError(28, "No space left on device", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"lock: No space left on device$"):
        run(input=[folder / "in"], output_prefix=folder / "c")
    assert not list(folder.glob("c_*"))


def test_one_process_makes_a_corpus(folder):
    staging = folder / "c_text_document.partial"
    staging.mkdir()
    with (staging / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=f"{staging} is in use: another process"):
            run(input=[folder / "in"], output_prefix=folder / "c")
    assert run(input=[folder / "in"], output_prefix=folder / "c")


def test_ctrl_c_is_one_line(folder):
    """It goes to the whole process group, the workers among it."""
    write_json_lines(folder / "in/3.jsonl", ["x" * 1_000_000] * 240)
    command = [sys.executable, TOOL, "--input", "in", "--output-prefix", "c", "--workers", "2"]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not any(file.stat().st_size for file in folder.glob("c_text_document.partial/*.bin")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.decode() == (
        "interrupted; what was done is kept in c_text_document.partial: "
        "the same command goes on from there\n"
    )
    fields = {"input": [folder / "in"], "output_prefix": folder / "c", "valid_fraction": 0.5}
    with pytest.raises(UserError, match=r"an interrupted run with valid_fraction=0\.0;"):
        run(**fields)
