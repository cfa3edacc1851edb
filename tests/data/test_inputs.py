"""Which files of an input are taken, as what, and which are left out and why."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from megatron_grow.data.preprocess import compression
from megatron_grow.data.preprocess.corpora import Position, RawDocument, read_batches, read_texts
from megatron_grow.data.preprocess.inputs import InputOptions, Inputs, LeftOut, find_inputs
from megatron_grow.data.preprocess.summary import by_kind
from megatron_grow.inputs.errors import UserError

LINES = b'{"text": "one"}\n{"text": "two"}\n'


def find(*names: Path, key: str = "text", skip_bad: bool = False, **fields: object) -> Inputs:
    options = {"globs": ["*"], "exclude": [], "outputs": [], **fields}
    return find_inputs([str(n) for n in names], InputOptions(key, skip_bad=skip_bad, **options))


def write_all(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def texts_of(inputs: Inputs) -> dict[str, list[str]]:
    return {
        file.path.name: list(read_texts([file], "text", skip_bad=False)) for file in inputs.files
    }


READABLE = {
    "a.jsonl": (LINES, ["one", "two"]),
    "a.ndjson": (LINES, ["one", "two"]),
    "a.json": (LINES, ["one", "two"]),
    "c4-train.00000.json.gz": (gzip.compress(LINES), ["one", "two"]),
    "UPPER.JSONL.GZ": (gzip.compress(LINES), ["one", "two"]),
    "part-00000": (LINES, ["one", "two"]),
    "part-00001.snappy": (b"\n" + LINES, ["one", "two"]),
    "jsonl.txt": (LINES, ["one", "two"]),
    "two-members.gz": (gzip.compress(LINES[:16]) + gzip.compress(LINES[16:]), ["one", "two"]),
    "a.jsonl.bz2": (bz2.compress(LINES), ["one", "two"]),
    "a.jsonl.lzma": (lzma.compress(LINES, format=lzma.FORMAT_ALONE), ["one", "two"]),
    "a.xz": (lzma.compress(LINES), ["one", "two"]),
    "misnamed.gz": (LINES, ["one", "two"]),
    "array.json": (b'[{"text": "one"}, {"text": "two"}]', ["one", "two"]),
    "array.dat": (b'[\n  {"text": "one"},\n  {"text": "two"}\n]\n', ["one", "two"]),
    "pretty.json": (json.dumps({"text": "one"}, indent=2).encode(), ["one"]),
    "pretty": (b'{\n "text": "one"\n}\n{\n "text": "two"\n}\n', ["one", "two"]),
    "bom.json": (b"\xef\xbb\xbf" + LINES, ["one", "two"]),
    "long": (b'{"text": "' + b"x" * 100_000 + b'"}\n' + LINES, ["x" * 100_000, "one", "two"]),
    "long.json": (b'[{"text":\n"' + b"x" * 2_000_000 + b'"}]', ["x" * 2_000_000]),
    "UPPER.TXT": (b"text", ["text"]),
    "a.txt.gz": (gzip.compress(b"text"), ["text"]),
    "latex": (b"{\\bf text}", ["{\\bf text}"]),
    "notes.md": (b"[1] is a reference\n[]", ["[1] is a reference\n[]"]),
    "dict.py": (b'{"a": 1}\nx = 1\ny = 2\n', ['{"a": 1}\nx = 1\ny = 2\n']),
    "one": (LINES[:16], ["one"]),
    "empty.jsonl": (b"\n", []),
    "nul.txt": (b"text " * 99 + b"\0", ["text " * 99 + "\0"]),
}


def test_everything_that_can_be_read_is_read(tmp_path):
    """Each file on its own, and all of them in one directory."""
    folder = write_all(tmp_path, {name: content for name, (content, _) in READABLE.items()})
    inputs = find(folder)
    assert inputs.left_out == []
    assert texts_of(inputs) == {name: texts for name, (_, texts) in READABLE.items()}
    assert [file.path.name for file in inputs.files] == sorted(READABLE)


def test_zstandard(tmp_path, monkeypatch):
    zstd = pytest.importorskip("backports.zstd")
    wide = zstd.CompressionParameter.window_log
    folder = write_all(
        tmp_path,
        {"a.jsonl.zst": zstd.compress(LINES[:16]) + zstd.compress(LINES[16:], options={wide: 30})},
    )
    assert texts_of(find(folder)) == {"a.jsonl.zst": ["one", "two"]}
    (folder / "cut.jsonl.zst").write_bytes(zstd.compress(LINES)[:-4])
    with pytest.raises(UserError, match=r"cut\.jsonl\.zst: cannot be read"):
        find(folder)


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    kinds = [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()]
    for name, kind in zip("abc", kinds, strict=True):
        column = pyarrow.array(["one", None, "two"], kind)
        table = pyarrow.table({"text": column, "n": [1, 2, 3]})
        parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
    assert texts_of(find(tmp_path)) == {f"{name}.parquet": ["one", "", "two"] for name in "abc"}
    message = r"a\.parquet: no column of text 'n'; its columns of text are text"
    with pytest.raises(UserError, match=message):
        find(tmp_path, key="n")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match=r"b\.parquet: cannot be read"):
        find(tmp_path)


def test_what_is_missing_to_read_a_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "zstd", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    folder = write_all(
        tmp_path,
        {"a.txt": b"a", "b.jsonl.zst": b"\x28\xb5\x2f\xfd\x20\1\x09", "c.parquet": b"PAR1PAR1"},
    )
    assert by_kind(find(folder).left_out) == (
        "1 .jsonl.zst (Zstandard: pip install backports.zstd to read it), 7 bytes; "
        "1 .parquet (Parquet: pip install pyarrow to read it), 8 bytes"
    )
    for name in ("b.jsonl.zst", "c.parquet"):
        with pytest.raises(UserError, match=f"{name}: cannot be read: .*pip install"):
            find(folder / name)


def test_what_is_left_out_of_a_directory_is_counted(tmp_path):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    np.save(tmp_path / "a.npy", np.arange(9))
    folder = write_all(
        tmp_path,
        {
            "a.txt": b"text",
            ".git/HEAD": b"ref",
            ".a.crc": b"crc",
            "image.PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
            "a.zip": b"PK\x03\x04....",
            "a.tar.gz": archive.getvalue(),
            "wide.txt": "\ufefftext".encode("utf-16-le"),
            "dataset_info.json": b'{\n  "features": {}\n}',
            "package.json": b'{"name": "x"}',
            "old/a.txt": b"text",
        },
    )
    (folder / "twin.txt").hardlink_to(folder / "a.txt")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "again").symlink_to(".")
    os.mkfifo(folder / "pipe")
    inputs = find(folder, exclude=["old"], globs=["*"])
    assert [file.path for file in inputs.files] == [folder / "a.txt"]
    assert {str(left.path.relative_to(folder)): left.reason for left in inputs.left_out} == {
        ".git": "hidden",
        ".a.crc": "hidden",
        "image.PNG": "binary",
        "a.npy": "binary",
        "a.zip": "zip archive",
        "a.tar.gz": "tar archive",
        "wide.txt": "UTF-16 text",
        "dataset_info.json": "JSON without 'text'",
        "package.json": "JSON without 'text'",
        "old": "by --exclude",
        "twin.txt": "named twice",
        "dangling": "no regular file",
        "pipe": "no regular file",
    }
    inputs = find(folder, globs=["*.md", "*.zip", "a.txt"])
    assert "1 .npy (by --glob)" in by_kind(inputs.left_out)


def test_many_kinds_are_told_in_a_line_that_can_be_read():
    files = [LeftOut(Path(f"{n}.kind{n % 20:02d}"), "binary", 10) for n in range(30)]
    told = by_kind(files).split("; ")
    # Ten kinds have two files, ten have one.
    assert len(told) == 13 and told[0] == "2 .kind00 (binary), 20 bytes"
    assert told[-1] == "8 of 8 other kinds, 80 bytes"


def test_a_file_is_taken_once(tmp_path):
    folder = write_all(tmp_path, {"data/a.txt": b"a", "data/b.txt": b"b"}) / "data"
    (tmp_path / "link.txt").symlink_to(folder / "b.txt")
    names = [tmp_path / "link.txt", folder / "../data/a.txt", folder, folder / "a.txt"]
    inputs = find(*names)
    assert [file.path for file in inputs.files] == names[:2]
    assert by_kind(inputs.left_out) == "3 .txt (named twice), 3 bytes"


def test_a_linked_folder_is_read(tmp_path):
    write_all(tmp_path, {"real/deep/a.txt": b"a", "input/b.txt": b"b"})
    (tmp_path / "input/link").symlink_to(tmp_path / "real")
    assert texts_of(find(tmp_path / "input")) == {"b.txt": ["b"], "a.txt": ["a"]}


def test_what_the_command_writes_is_not_its_input(tmp_path):
    folder = write_all(tmp_path, {"a.txt": b"a", "c.partial/b.txt": b"b"})
    outputs = [folder / "../" / folder.name / "c.partial", folder / "c_text_document.json"]
    assert texts_of(find(folder, outputs=outputs)) == {"a.txt": ["a"]}
    outputs.append(folder / "a.txt")
    with pytest.raises(UserError, match=r"a\.txt is what this command writes"):
        find(folder / "a.txt", outputs=outputs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(LINES, mtime=0)[:9], "cannot be read"),
        (b'{"title": "x"}', "no key 'text'; its keys are title"),
        (json.dumps(dict.fromkeys("abcdefghijklm")).encode(), "no key .* a, b, c, .*, j, ...$"),
    ],
)
def test_a_bad_file_is_told_at_once(tmp_path, content, message):
    """Before hours of work on the others; with --on-bad-line skip it is left out."""
    folder = write_all(tmp_path, {"a.jsonl": LINES, "b.jsonl": content})
    with pytest.raises(UserError, match=rf"b\.jsonl: {message}"):
        find(folder)
    inputs = find(folder, skip_bad=True)
    assert list(read_texts(inputs.files, "text", skip_bad=True))[:2] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "compress"), [("gz", gzip.compress), ("xz", lzma.compress), ("bz2", bz2.compress)]
)
def test_a_small_damaged_file_is_read_as_far_as_it_is_whole(tmp_path, name, compress):
    """As a large one is."""
    damaged = compress(LINES) + compress(b"x" * 99)[:-9]
    folder = write_all(tmp_path, {f"a.jsonl.{name}": damaged, "b.jsonl": LINES})
    with pytest.raises(UserError, match=rf"a\.jsonl\.{name}: cannot be read"):
        find(folder)
    inputs = find(folder, skip_bad=True)
    assert list(read_texts(inputs.files, "text", skip_bad=True))[:2] == ["one", "two"]
    assert len(inputs.files) == 2


@pytest.mark.parametrize(
    ("name", "compress"), [("gz", gzip.compress), ("xz", lzma.compress), ("bz2", bz2.compress)]
)
def test_streams_behind_each_other(tmp_path, name, compress):
    """Python's own readers of .xz and .bz2 end silently at a later stream that is damaged."""
    one, two = compress(LINES[:16]), compress(LINES[16:])
    padding = b"\0" * 10_000 if name == "xz" else b""
    path = tmp_path / f"a.jsonl.{name}"
    for content in (one + two, one + padding + two + padding):
        path.write_bytes(content)
        assert texts_of(find(path)) == {path.name: ["one", "two"]}
    for damaged in (one + b"garbage", one + two[:-9], one + b"\0" * 3 + two[1:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=rf"{path.name}"):
            find(path)


def test_an_empty_file_is_left_out(tmp_path):
    """Whatever its name promises: an upload that failed, say."""
    empty = dict.fromkeys(["a.txt", "b.jsonl.gz", "c.parquet", "_SUCCESS"], b"")
    inputs = find(write_all(tmp_path, {**empty, "d.txt": b"d"}))
    assert texts_of(inputs) == {"d.txt": ["d"]}
    assert [left.reason for left in inputs.left_out] == ["empty"] * 4
    with pytest.raises(UserError, match=r"no file to read; left out: 1 \(empty\)"):
        find(tmp_path / "a.txt")


def test_reading_goes_on_from_any_batch(tmp_path):
    """As if it had not been interrupted, in every format."""
    lines = b"".join(b'{"text": "%d"}\n\n' % number for number in range(9))
    array = json.dumps([{"text": str(number)} for number in range(9)]).encode()
    contents = {
        "a.txt": b"text",
        "b.jsonl": lines,
        "c.jsonl.gz": gzip.compress(lines),
        "d.jsonl.bz2": bz2.compress(lines),
        "e.jsonl.xz": lzma.compress(lines),
        "f.json": array,
        "g.txt": b"text",
    }
    files = find(write_all(tmp_path, contents)).files

    def read(start: Position) -> tuple[list[RawDocument], list[Position]]:
        batches = list(read_batches(files, "text", start, batch_bytes=40))
        assert sum(batch.disk_bytes for batch in batches) >= 0
        return [r for batch in batches for r in batch.documents], [batch.end for batch in batches]

    documents, ends = read(Position())
    assert [int(r.number) for r in documents] == [1, *[*range(1, 18, 2)] * 4, *range(1, 10), 1]
    assert len(ends) == 15 and ends == sorted(ends)
    left = [read(end)[0] for end in ends]
    assert [len(rest) for rest in left] == sorted({len(rest) for rest in left}, reverse=True)
    assert all(rest == documents[len(documents) - len(rest) :] for rest in left)
    assert left[-1] == []
