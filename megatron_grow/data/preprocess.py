"""Raw corpora to Megatron's indexed format: what ``tools/preprocess_data.py`` runs."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from megatron_grow import __version__
from megatron_grow.config.errors import UserError
from megatron_grow.data.corpora import Position, read_chunks, read_texts
from megatron_grow.data.encode import Encoder
from megatron_grow.data.inputs import InputFile, InputOptions, Inputs, find_inputs
from megatron_grow.data.journal import Journal, Made, claimed, origin
from megatron_grow.data.signals import undisturbed
from megatron_grow.data.summary import by_kind, closing_lines
from megatron_grow.data.tokenizers import load_tokenizer, tokenizer_digest, train_bpe
from megatron_grow.data.workers import map_in_order

_SUFFIXES = (".bin", ".idx", ".json")
_MOST_WORKERS = 1024


@dataclass(frozen=True)
class PreprocessConfig:
    """What to read, how to encode it and where to write it."""

    input: list[str]
    """Files of JSON, text or Parquet, compressed or not, and directories of such files."""
    output_prefix: str
    """Writes PREFIX_text_document.{bin,idx,json}: the JSON key and what a sequence is."""
    json_key: str = "text"
    """Key of the text in a JSON object, its column in Parquet."""
    glob: Sequence[str] = ("*",)
    """Names of files taken from a directory."""
    exclude: Sequence[str] = ()
    """Names of files and folders left out of a directory."""
    on_bad_line: str = "stop"
    """What a document does that cannot be read or encoded: ``stop`` the run, or be left out and
    counted: ``skip``."""
    tokenizer: str = "bytes"
    """``bytes``, ``gpt2`` or the path of a tokenizer.json."""
    vocab_file: str | None = None
    merge_file: str | None = None
    train_tokenizer: int | None = None
    """Train a BPE of this many tokens on the input, write it as PREFIX-tokenizer.json, use it."""
    append_eod: bool = False
    """End every document with the end-of-document token."""
    split_sentences: bool = False
    """Make every sentence a sequence, and the output PREFIX_text_sentence."""
    language: str = "english"
    """Whose Punkt model to look for."""
    valid_fraction: float = 0.0
    """Share of documents, evenly spaced, written to PREFIX_valid_text_document instead."""
    workers: int = 1
    """Processes that encode; the output does not depend on it."""
    overwrite: bool = False
    """Replace an existing output."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.valid_fraction < 1.0:
            raise UserError(f"valid_fraction={self.valid_fraction} must be in [0, 1)")
        if not 1 <= self.workers <= _MOST_WORKERS:
            raise UserError(f"workers={self.workers} must be from 1 to {_MOST_WORKERS}")
        if self.on_bad_line not in ("stop", "skip"):
            raise UserError(f"on_bad_line={self.on_bad_line} must be stop or skip")
        if os.path.basename(self.output_prefix) in ("", ".", ".."):
            raise UserError(
                f"output_prefix={self.output_prefix} must end in the beginning of a file name, "
                f"such as {os.path.join(self.output_prefix, 'corpus')}"
            )

    @property
    def prefixes(self) -> dict[str, str]:
        """Output prefix of each part: ``train`` and, if documents are held out, ``valid``."""
        level = "sentence" if self.split_sentences else "document"
        parts = {"train": "", "valid": "_valid"} if self.valid_fraction else {"train": ""}
        key = self.json_key.replace("/", "_")
        return {part: f"{self.output_prefix}{infix}_{key}_{level}" for part, infix in parts.items()}

    @property
    def outputs(self) -> list[Path]:
        """Every file that is written."""
        outputs = [Path(prefix + end) for prefix in self.prefixes.values() for end in _SUFFIXES]
        return outputs if self.train_tokenizer is None else [*outputs, Path(self.tokenizer_path)]

    @property
    def staging(self) -> Path:
        """Where they are written until they are whole."""
        return Path(f"{self.prefixes['train']}.partial")

    @property
    def kept(self) -> str:
        """What an interrupted run leaves, in words."""
        return f"what was done is kept in {self.staging}: the same command goes on from there"

    @property
    def skips_bad(self) -> bool:
        """Whether bad documents are left out."""
        return self.on_bad_line == "skip"

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer as a run file names it."""
        return self.tokenizer if self.train_tokenizer is None else self.tokenizer_path

    @property
    def tokenizer_path(self) -> str:
        """Where a trained tokenizer is written."""
        return f"{self.output_prefix}-tokenizer.json"

    def settings(self) -> dict[str, Any]:
        """What the output depends on, besides the input; loads the tokenizer."""
        digest = None
        if self.train_tokenizer is None:
            loaded = load_tokenizer(self.tokenizer, self.vocab_file, self.merge_file)
            digest = tokenizer_digest(loaded)
        return {
            "version": __version__,
            "tokenizer_digest": digest,
            "train_tokenizer": self.train_tokenizer,
            "json_key": self.json_key,
            "append_eod": self.append_eod,
            "split_sentences": self.split_sentences and self.language,
            "valid_fraction": self.valid_fraction,
        }

    def part(self, document: int) -> str:
        """Which part document number ``document`` (from 0, empty ones counted) belongs to."""
        share = self.valid_fraction
        held_out = math.floor((document + 1) * share + 0.5) - math.floor(document * share + 0.5)
        return "valid" if held_out else "train"


def preprocess(config: PreprocessConfig, console: Console) -> dict[str, str]:
    """Encode the input into an indexed corpus for each part; returns ``config.prefixes``.

    Memory is bounded by the largest documents, not by the corpus. Everything is written in
    ``config.staging`` and moved when it is whole. An interrupted run leaves that directory, and the
    same run goes on from there. What the same run has made before is not made again.

    Raises:
        UserError: input that is missing or cannot be read; output that exists or cannot be written;
            an empty part; a worker that was killed.
    """
    try:
        fresh = not config.staging.exists()
        if fresh and not all(map(os.path.lexists, config.outputs)):
            _refuse_existing(config)
        settings = config.settings()
        options = InputOptions(
            config.json_key,
            config.glob,
            config.exclude,
            config.skips_bad,
            [config.staging, *config.outputs],
        )
        inputs = find_inputs(config.input, options)
        if inputs.left_out:
            console.print(f"leaves out {by_kind(inputs.left_out)}")
        made_from = origin(settings, inputs.files)
        if fresh and not config.overwrite and _is_made(config, made_from):
            made = " and ".join(config.prefixes.values())
            console.print(f"{made}: made before, of the same files in the same way")
            return config.prefixes
        with claimed(config.staging):
            _make(config, settings, inputs, made_from, console)
    except OSError as error:
        with suppress(OSError):
            config.staging.rmdir()  # if nothing is in it
        raise UserError(_one_line(error, config)) from error
    return config.prefixes


def _one_line(error: UserError | OSError, config: PreprocessConfig) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"{error.filename or config.staging}: {error.strerror or error}"


def _is_made(config: PreprocessConfig, made_from: str) -> bool:
    """Whether all of the output is there, and its sidecars tell of the same origin."""
    try:
        told = [json.loads(Path(f"{p}.json").read_bytes()) for p in config.prefixes.values()]
        alike = all(sidecar["made_from"] == made_from for sidecar in told)
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return alike and all(output.is_file() for output in config.outputs)


def _refuse_existing(config: PreprocessConfig) -> None:
    for output in config.outputs:
        if os.path.lexists(output) and not (config.overwrite and not output.is_dir()):
            raise UserError(f"{output} exists; choose another --output-prefix or give --overwrite")


def _make(
    config: PreprocessConfig,
    settings: dict[str, Any],
    inputs: Inputs,
    made_from: str,
    console: Console,
) -> None:
    """Make the output in the staging directory, and move it."""
    journal = Journal(config.staging / "journal.jsonl")
    trains = config.train_tokenizer is not None or config.split_sentences
    made = journal.begin(settings, inputs.files, needs_all=trains, start_over=config.overwrite)
    if made.position > Position():
        documents = made.findings.total
        console.print(f"goes on after {documents:,} documents, kept in {config.staging}")
    done = False
    try:
        if not made.written:
            _refuse_existing(config)
            encoder = _prepare_encoder(config, inputs.files, journal, made, console)
            made = _write_parts(config, inputs, encoder, journal, made, made_from, console)
            _refuse_existing(config)  # somebody else's, by now
            journal.mark(made, [config.staging / output.name for output in config.outputs])
        with undisturbed():
            _publish(config, inputs, made, console)
            done = True
    except (UserError, OSError) as error:
        kept = f"; {config.kept}" if journal.marked else ""
        raise UserError(f"{_one_line(error, config)}{kept}") from error
    finally:
        if done or not journal.marked:
            shutil.rmtree(config.staging)


def _prepare_encoder(
    config: PreprocessConfig,
    files: Sequence[InputFile],
    journal: Journal,
    made: Made,
    console: Console,
) -> Encoder:
    """Load or train what turns text into tokens."""
    tokenizer = config.tokenizer
    if config.train_tokenizer is not None:
        tokenizer = str(config.staging / Path(config.tokenizer_path).name)
        if not journal.marked:
            console.print(f"Training a BPE of {config.train_tokenizer} tokens on the input")
            texts = read_texts(files, config.json_key, config.skips_bad)
            kept = (text for number, text in enumerate(texts) if config.part(number) == "train")
            train_bpe(kept, config.train_tokenizer).save(tokenizer)
            journal.mark(made, [Path(tokenizer)])
    splitter = None
    if config.split_sentences:
        from megatron_grow.data.sentences import installed_splitter, train_splitter

        splitter = installed_splitter(config.language)
        if splitter is None:
            console.print(f"Training Punkt on the input: no model for {config.language} is here")
            splitter = train_splitter(read_texts(files, config.json_key, config.skips_bad))
    return Encoder(
        tokenizer=tokenizer,
        vocab_file=config.vocab_file,
        merge_file=config.merge_file,
        json_key=config.json_key,
        append_eod=config.append_eod,
        split_sentences=splitter,
    )


def _write_parts(
    config: PreprocessConfig,
    inputs: Inputs,
    encoder: Encoder,
    journal: Journal,
    made: Made,
    made_from: str,
    console: Console,
) -> Made:
    """Encode and write all documents from ``made`` on."""
    tokenizer = encoder.load_tokenizer()
    # Imported late: megatron-core takes seconds, which bad input should not wait for.
    from megatron_grow.data.parts_writer import PartsWriter

    names = {part: Path(prefix).name for part, prefix in config.prefixes.items()}
    writer = PartsWriter(config.staging, names, config.part, tokenizer, journal, made)
    started, before = time.monotonic(), writer.tokens
    chunks = read_chunks(inputs.files, config.json_key, made.position)
    with (
        _progress_bar(console) as progress,
        closing(map_in_order(encoder.load, chunks, config.workers)) as encoded,
        writer,
    ):
        bar = progress.add_task("Encoding", total=inputs.size, rate="")
        for chunk in encoded:
            if chunk.findings.bad and not config.skips_bad:
                raise UserError(
                    f"{chunk.findings.places[0]}; --on-bad-line skip leaves out what is bad"
                )
            writer.write(chunk)
            rate = (writer.tokens - before) / (time.monotonic() - started)
            progress.update(bar, completed=writer.made.disk_bytes, rate=f"{rate:,.0f} tokens/s")
    seconds = time.monotonic() - started
    console.print(f"{(writer.tokens - before) / seconds:,.0f} tokens/s in {seconds:.1f} s")
    made = writer.finish(config.tokenizer_name, config.append_eod, made_from)
    for part, (documents, _) in made.written.items():
        if not documents:
            journal.marked = False  # going on would end here again
            findings = made.findings
            bad = f", bad: {findings.bad}, first {findings.places[0]}" if findings.bad else ""
            raise UserError(
                f"the {part} part has no document with text (valid_fraction="
                f"{config.valid_fraction}; documents in the input: {findings.total}{bad})"
            )
    return made


def _publish(config: PreprocessConfig, inputs: Inputs, made: Made, console: Console) -> None:
    """Move the parts to where they belong, and tell of them."""
    from megatron_grow.data.writer import publish  # late, as above

    target = Path(config.output_prefix).parent
    publish(config.staging, target, [output.name for output in config.outputs])
    for part, (documents, tokens) in made.written.items():
        console.print(f"{config.prefixes[part]}: {documents:,} documents, {tokens:,} tokens")
    for line in closing_lines(inputs, made.findings):
        console.print(line)


def _progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
