"""Raw text to indexed corpora: content, order, and what bad input or a kill leaves behind."""

from __future__ import annotations

import gzip
import io
import itertools
import lzma
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import psutil
import pytest
import tokenizers
from megatron.core.datasets.indexed_dataset import IndexedDataset
from rich.console import Console

from megatron_grow.data.indexed import Sidecar, open_corpus
from megatron_grow.data.preprocess import splits_writer
from megatron_grow.data.preprocess.splits_writer import SplitsWriter
from megatron_grow.data.tokenizers.load import load_tokenizer, tokenizer_digest
from megatron_grow.inputs.errors import UserError
from tests.data.corpora import assert_same, run, stdlib_files, stdlib_texts, write_json_lines
from tests.forks import CONTEXT

TOOL = Path(__file__).parents[2] / "tools" / "preprocess_data.py"


def documents(prefix: str) -> list[list[int]]:
    """The documents at ``prefix`` as Megatron reads them."""
    dataset = IndexedDataset(prefix)
    assert dataset.document_indices.tolist() == list(range(len(dataset) + 1))
    return [dataset[i].tolist() for i in range(len(dataset))]


def test_documents_are_the_bytes_of_the_input(tmp_path):
    texts = ["Zwölf Boxkämpfer\n", "", "two\nlines", "数"]
    source = write_json_lines(tmp_path / "in.jsonl", texts)
    prefix = run(input=[source], output_prefix=tmp_path / "out/c", append_eod=True)["train"]
    assert prefix == str(tmp_path / "out/c_text_document")
    expected = [[*text.encode(), 256] for text in texts if text]
    assert documents(prefix) == expected
    tokens = np.fromfile(f"{prefix}.bin", dtype=np.uint16)
    assert tokens.tolist() == list(itertools.chain(*expected))
    digest = tokenizer_digest(load_tokenizer("bytes"))
    sidecar = open_corpus(prefix, "").sidecar
    assert sidecar is not None and sidecar.made_from is not None
    assert replace(sidecar, made_from=None) == Sidecar(
        "bytes", 257, 256, True, 3, len(tokens), digest
    )
    assert sorted(os.listdir(tmp_path / "out")) == [
        f"c_text_document{suffix}" for suffix in (".bin", ".idx", ".json")
    ]


def test_output_is_the_same_for_any_number_of_workers(tmp_path):
    texts = stdlib_texts(120)
    assert sum(map(len, texts)) > 3 << 20  # several batches
    source = write_json_lines(tmp_path / "in.jsonl", texts)
    for workers in (1, 3):
        run(input=[source], output_prefix=tmp_path / str(workers), workers=workers)
    for suffix in (".bin", ".idx", ".json"):
        one, three = (tmp_path / f"{n}_text_document{suffix}" for n in (1, 3))
        assert one.read_bytes() == three.read_bytes()
    assert documents(str(tmp_path / "3_text_document")) == [list(t.encode()) for t in texts]


def test_files_of_every_kind_in_the_order_given(tmp_path):
    text = [f"text {i}" for i in range(5)]
    plain = write_json_lines(tmp_path / "a.jsonl", text[:1])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "text 1"}\n\n'))
    (tmp_path / "c.jsonl.xz").write_bytes(lzma.compress(b'{"text": "text 2"}'))
    (tmp_path / "d.txt.xz").write_bytes(lzma.compress(b"text 3"))
    (tmp_path / "e.txt").write_text("\ufefftext 4", encoding="utf-8")
    files = [plain, *(tmp_path / n for n in ("b.jsonl.gz", "c.jsonl.xz", "d.txt.xz", "e.txt"))]
    prefix = run(input=reversed(files), output_prefix=tmp_path / "out")["train"]
    assert documents(prefix) == [list(t.encode()) for t in reversed(text)]


def test_a_directory_is_read_recursively_and_sorted(tmp_path):
    for name in ("z.py", "a/b.py", "a/a.rst", "tests/t.py", "a/tests.py"):
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    prefix = run(
        input=[tmp_path / "src"],
        output_prefix=tmp_path / "out",
        glob=("*.py", "*.rst"),
        exclude=("tests",),
    )["train"]
    found = [bytes(document).decode() for document in documents(prefix)]
    assert found == ["a/a.rst", "a/b.py", "a/tests.py", "z.py"]


def test_held_out_documents_are_spread_and_in_one_part_only(tmp_path):
    texts = [f"document {i}" for i in range(50)]
    source = write_json_lines(tmp_path / "in.jsonl", texts)
    parts = run(input=[source], output_prefix=tmp_path / "c", valid_fraction=0.1)
    assert parts["valid"] == str(tmp_path / "c_valid_text_document")
    train, valid = (
        [bytes(document).decode() for document in documents(parts[part])]
        for part in ("train", "valid")
    )
    assert valid == texts[4::10]
    assert train == [text for text in texts if text not in valid]


def test_a_trained_tokenizer_is_kept_and_used(tmp_path):
    files = stdlib_files(12)
    prefix = run(input=files, output_prefix=tmp_path / "c", train_tokenizer=400, append_eod=True)[
        "train"
    ]
    path = tmp_path / "c-tokenizer.json"
    library = tokenizers.Tokenizer.from_file(str(path))
    eod = library.token_to_id("<|endoftext|>")
    library.encode_special_tokens = True
    assert documents(prefix) == [
        [*library.encode(file.read_text(encoding="utf-8")).ids, eod] for file in files
    ]
    sidecar = open_corpus(prefix, "").sidecar
    assert sidecar is not None
    assert (sidecar.tokenizer, sidecar.vocab_size) == (str(path), 400)


def test_sentences_are_sequences_of_one_document(tmp_path):
    texts = ["One is here. Two is there!\n\nThree?  ", "Alone"]
    source = write_json_lines(tmp_path / "in.jsonl", texts)
    prefix = run(
        input=[source], output_prefix=tmp_path / "c", append_eod=True, split_sentences=True
    )["train"]
    assert prefix.endswith("c_text_sentence")
    dataset = IndexedDataset(prefix)
    assert dataset.document_indices.tolist() == [0, 3, 4]
    sentences = [dataset[i].tolist() for i in range(4)]
    assert sentences == [
        list(b"One is here."),
        list(b" Two is there!"),
        [*b"\n\nThree?  ", 256],
        [*b"Alone", 256],
    ]
    corpus = open_corpus(prefix, "data.train_data_path")
    assert corpus.has_sentences and corpus.longest == 3
    assert corpus.sidecar is not None and str(corpus.sidecar.sentences).startswith("Punkt, ")


BAD_INPUT = {
    "cut.jsonl": (b'{"text": "a"}\n\n{"text": \n', "cut.jsonl, line 3: not JSON"),
    "key.jsonl": (
        b'{"title": "x", "body": "y"}',
        "key.jsonl: no key 'text'; its keys are title, body",
    ),
    "type.jsonl": (b'{"text": 3}', "line 1: the value of 'text' must be a string, not int"),
    "list.jsonl": (b"[1]", "line 1: a JSON object is expected, not list"),
    "half.jsonl": (b'{"text": "\\ud800"}', "line 1: the text is not valid Unicode"),
    "latin.txt": ("é".encode("latin-1"), "latin.txt: not UTF-8 at byte 0"),
    "short.txt.xz": (lzma.compress(b"text" * 9)[:-8], "short.txt.xz: cannot be read"),
    "image.txt": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image.txt: cannot be read: binary"),
    "packed.zip": (b"PK\x03\x04" + bytes(9), "packed.zip: cannot be read: zip archive"),
    "deep.jsonl": (b'{"text": ' + b"[" * 99_999, "deep.jsonl, line 1: not JSON"),
    "long.jsonl": (b'{"text": ' + b"1" * 9_999 + b"}", "long.jsonl, line 1: not JSON"),
    "cut.json": (b'[{"text": "a"},\n{"te', "cut.json, entry 2: cannot be read: not JSON"),
    "empty.txt": (b"", "no file to read; left out: 1 (empty)"),
    "blank.jsonl": (b'{"text": ""}', "the train part has no document with text"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_named_and_leaves_nothing(tmp_path, name):
    content, message = BAD_INPUT[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        run(input=[tmp_path / name], output_prefix=tmp_path / "out/c")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*"))


def test_existing_output_is_kept_unless_told_otherwise(tmp_path):
    old, new = (write_json_lines(tmp_path / f"{n}.jsonl", [n]) for n in ("old", "new"))
    prefix = run(input=[old], output_prefix=tmp_path / "c")["train"]
    with pytest.raises(UserError, match=r"c_text_document\.bin exists"):
        run(input=[new], output_prefix=tmp_path / "c")
    assert documents(prefix) == [list(b"old")]
    run(input=[new], output_prefix=tmp_path / "c", overwrite=True)
    assert documents(prefix) == [list(b"new")]
    # The same command again does nothing; another way of making it, or another input, is refused.
    made = os.stat(f"{prefix}.bin").st_mtime_ns
    assert run(input=[new], output_prefix=tmp_path / "c") == {"train": prefix}
    assert os.stat(f"{prefix}.bin").st_mtime_ns == made
    with pytest.raises(UserError, match=r"c_text_document\.bin exists"):
        run(input=[new], output_prefix=tmp_path / "c", append_eod=True)
    write_json_lines(new, ["changed"])
    with pytest.raises(UserError, match=r"c_text_document\.bin exists"):
        run(input=[new], output_prefix=tmp_path / "c")
    assert documents(prefix) == [list(b"new")]
    with pytest.raises(UserError, match=r"input=.*nowhere does not exist"):
        run(input=[tmp_path / "nowhere"], output_prefix=tmp_path / "d")


def test_a_killed_run_leaves_nothing_that_looks_whole_and_is_gone_on_with(tmp_path):
    texts = [f"{number} " + "x" * 1_000_000 for number in range(60)]
    source = write_json_lines(tmp_path / "in.jsonl", texts)
    reached = CONTEXT.Event()
    process = CONTEXT.Process(
        target=_preprocess_halfway, args=(source, tmp_path / "out/c", reached)
    )
    process.start()
    journal = tmp_path / "out/c_text_document.partial/journal.jsonl"
    try:
        assert reached.wait(timeout=120)
        workers = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.join()
    assert workers
    assert psutil.wait_procs(workers, timeout=120)[1] == []  # and no worker is left waiting
    assert os.listdir(tmp_path / "out") == ["c_text_document.partial"]
    console = Console(record=True, file=io.StringIO(), width=999)
    prefix = run(console, input=[source], output_prefix=tmp_path / "out/c", valid_fraction=0.1)
    assert re.search(r"goes on after (\d+) documents", console.export_text())
    whole = run(input=[source], output_prefix=tmp_path / "c", valid_fraction=0.1)
    assert_same(prefix, whole)
    assert not journal.parent.exists()


def _preprocess_halfway(source: Path, output_prefix: Path, reached: Event) -> None:
    """Stand still when documents have been marked, and more written that are not."""
    splits_writer.MARK_SECONDS = 0
    mark, marks = SplitsWriter._mark, itertools.count()

    def five_times(writer: SplitsWriter) -> None:
        if next(marks) == 5:
            reached.set()
            signal.pause()
        mark(writer)

    SplitsWriter._mark = five_times
    run(input=[source], output_prefix=output_prefix, valid_fraction=0.1)


def test_what_the_tokenizer_lacks_is_told(tmp_path):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "</s>": 2}, []))
    backend.save(str(tmp_path / "tokenizer.json"))
    unknown = tokenizers.models.BPE({"a": 0, "b": 1, "</s>": 2, "?": 3}, [], unk_token="?")
    tokenizers.Tokenizer(unknown).save(str(tmp_path / "unknown.json"))
    source = write_json_lines(tmp_path / "in.jsonl", ["ab", "aéb数é", "é"])
    for name, expected, line in (
        ("tokenizer", [[0, 1], [0, 1]], "4 characters left out, for which the tokenizer has no "),
        ("unknown", [[0, 1], [0, 3, 1, 3, 3], [3]], "4 unknown tokens: the first is in "),
    ):
        console = Console(record=True, file=io.StringIO(), width=999)
        tokenizer = str(tmp_path / f"{name}.json")
        fields = {"input": [source], "output_prefix": tmp_path / name, "tokenizer": tokenizer}
        assert documents(run(console, **fields)["train"]) == expected
        printed = console.export_text()
        assert line in printed and f"{source}, line 2\n" in printed
        assert ("the first is 'é' (U+00E9)" in printed) == (name == "tokenizer")
        assert ("1 documents without text" in printed) == (name == "tokenizer")


def test_a_text_that_cannot_be_encoded_is_a_bad_document(tmp_path):
    """A closed vocabulary without an unknown token."""
    words = tokenizers.models.WordLevel({"a": 0, "</s>": 1}, unk_token="none")
    tokenizers.Tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    source = write_json_lines(tmp_path / "in.jsonl", ["a", "b", "a"])
    fields = {"input": [source], "tokenizer": str(tmp_path / "tokenizer.json")}
    with pytest.raises(UserError, match=r"in\.jsonl, line 2: tokenizer=.* cannot encode this"):
        run(output_prefix=tmp_path / "c", **fields)
    prefix = run(output_prefix=tmp_path / "c", on_bad_line="skip", **fields)["train"]
    assert documents(prefix) == [[0], [0]]
    with pytest.raises(UserError, match=r"bad: 3, first .*in\.jsonl, line 1: no key 'body'"):
        run(output_prefix=tmp_path / "d", on_bad_line="skip", json_key="body", **fields)


def test_what_is_checked_is_what_is_written(tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('{"a/b": "x", "../c": "y"}')
    prefix = run(input=[source], output_prefix=tmp_path / "c", json_key="a/b")["train"]
    assert prefix == str(tmp_path / "c_a_b_document")
    assert documents(prefix) == [[120]]
    with pytest.raises(UserError, match=r"c_a_b_document\.bin exists"):
        run(input=[source], output_prefix=tmp_path / "c", json_key="a/b", append_eod=True)
    prefix = run(input=[source], output_prefix=tmp_path / "c", json_key="../c")["train"]
    assert prefix == str(tmp_path / "c_.._c_document")
    for directory in ("data/", "", ".", "data/.."):
        with pytest.raises(UserError, match="must end in the beginning of a file name, such as"):
            run(input=[source], output_prefix=directory)
    (tmp_path / "d_text_document.idx").mkdir()
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"d_text_document\.idx exists"):
            run(input=[source], output_prefix=tmp_path / "d", overwrite=overwrite)
    with pytest.raises(UserError, match=r"in\.jsonl/d_a_b_document\.partial: Not a directory"):
        run(input=[source], output_prefix=source / "d", json_key="a/b")
    assert sorted(os.listdir(tmp_path)) == sorted(
        [
            *(f"c_{k}_document.{s}" for k in ("a_b", ".._c") for s in ("bin", "idx", "json")),
            "d_text_document.idx",
            "in.jsonl",
        ]
    )


def test_command_line(tmp_path):
    write_json_lines(tmp_path / "books.jsonl", ["Call me Ishmael."])
    os.mkdir(os.fsencode(tmp_path) + b"/more")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/more/\xff.png")).write_bytes(b"\x89PNG\0\0")
    arguments = "--input books.jsonl more books.jsonl --output-prefix data/[red]books"
    done, again, refused = (
        subprocess.run(
            [sys.executable, TOOL, *arguments.split(), *eod],
            cwd=tmp_path,
            timeout=600,
            capture_output=True,
            text=True,
        )
        for eod in (["--append-eod"], ["--append-eod"], [])
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "data/[red]books_text_document: 1 documents, 17 tokens" in done.stdout
    assert (
        "read 1 documents (1 of JSON lines) in 1 files: 1 .jsonl (JSON lines), 29 bytes\n"
        "left out 2 files: 1 .jsonl (named twice), 29 bytes; 1 .png (binary), 6 bytes\n"
    ) in done.stdout
    prefix = str(tmp_path / "data/[red]books_text_document")
    assert documents(prefix) == [[*b"Call me Ishmael.", 256]]
    assert (again.returncode, again.stderr) == (0, "")
    assert "data/[red]books_text_document: made before, of the same files" in again.stdout
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: data/[red]books_text_document.bin exists")
    assert refused.stderr.count("\n") == 1
