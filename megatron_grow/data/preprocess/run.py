"""Raw corpora to Megatron's indexed format: what ``tools/preprocess_data.py`` runs."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import tokenizers
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from megatron_grow.data.preprocess.config import PreprocessConfig
from megatron_grow.data.preprocess.corpora import Position, read_batches, read_texts
from megatron_grow.data.preprocess.encode import Encoder
from megatron_grow.data.preprocess.inputs import InputFile, InputOptions, Inputs, find_inputs
from megatron_grow.data.preprocess.journal import Journal, Made, claimed, origin
from megatron_grow.data.preprocess.summary import by_kind, closing_lines
from megatron_grow.data.preprocess.workers import map_in_order
from megatron_grow.data.signals import undisturbed
from megatron_grow.data.tokenizers.train import train_bpe, train_word_piece
from megatron_grow.inputs.errors import UserError


def preprocess(config: PreprocessConfig, console: Console) -> dict[str, str]:
    """Encode the input into an indexed corpus for each split; returns ``config.prefixes``.

    Memory is bounded by the largest documents, not by the corpus. Everything is written in
    ``config.staging`` and moved when it is whole. An interrupted run leaves that directory, and the
    same run goes on from there. What the same run has made before is not made again.

    Raises:
        UserError: input that is missing or cannot be read; output that exists or cannot be written;
            an empty split; a worker that was killed.
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
            made = _write_splits(config, inputs, encoder, journal, made, made_from, console)
            _refuse_existing(config)  # somebody else's, by now
            journal.mark(made, [config.staging / output.name for output in config.outputs])
        with undisturbed():
            _move(config, inputs, made, console)
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
            kind = "BPE" if config.tokenizer_model == "bpe" else "WordPiece vocabulary"
            console.print(f"Training a {kind} of {config.train_tokenizer} tokens on the input")
            _train_tokenizer(config, config.train_tokenizer, files).save(tokenizer)
            journal.mark(made, [Path(tokenizer)])
    splitter = None
    if config.split_sentences:
        from megatron_grow.data.preprocess.sentences import installed_splitter, train_splitter

        splitter = installed_splitter(config.language)
        if splitter is None:
            console.print(
                f"Training Punkt on the input: no model for {config.language} is here, as "
                "python -m nltk.downloader punkt_tab brings"
            )
            splitter = train_splitter(read_texts(files, config.json_key, config.skips_bad))
    return Encoder(
        tokenizer=tokenizer,
        vocab_file=config.vocab_file,
        merge_file=config.merge_file,
        json_key=config.json_key,
        append_eod=config.append_eod,
        split_sentences=splitter,
    )


def _train_tokenizer(
    config: PreprocessConfig, vocab_size: int, files: Sequence[InputFile]
) -> tokenizers.Tokenizer:
    """A tokenizer of the training split."""

    def texts() -> Iterator[str]:
        found = enumerate(read_texts(files, config.json_key, config.skips_bad))
        return (text for number, text in found if config.split(number) == "train")

    if config.tokenizer_model == "bpe":
        return train_bpe(texts(), vocab_size)
    return train_word_piece(texts, vocab_size, lower_case=not config.cased)


def _write_splits(
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
    from megatron_grow.data.preprocess.splits_writer import SplitsWriter

    names = {split: Path(prefix).name for split, prefix in config.prefixes.items()}
    writer = SplitsWriter(config.staging, names, config.split, tokenizer, journal, made)
    started, before = time.monotonic(), writer.tokens
    batches = read_batches(inputs.files, config.json_key, made.position)
    with (
        _progress_bar(console) as progress,
        closing(map_in_order(encoder.load, batches, config.workers)) as encoded,
        writer,
    ):
        bar = progress.add_task("Encoding", total=inputs.size, rate="")
        for batch in encoded:
            if batch.findings.bad and not config.skips_bad:
                raise UserError(
                    f"{batch.findings.places[0]}; --on-bad-line skip leaves out what is bad"
                )
            writer.write(batch)
            rate = (writer.tokens - before) / (time.monotonic() - started)
            progress.update(bar, completed=writer.made.disk_bytes, rate=f"{rate:,.0f} tokens/s")
    seconds = time.monotonic() - started
    console.print(f"{(writer.tokens - before) / seconds:,.0f} tokens/s in {seconds:.1f} s")
    splitter = encoder.split_sentences
    made = writer.finish(
        config.tokenizer_name,
        config.append_eod,
        made_from,
        sentences=splitter.source if splitter else None,
    )
    for split, (documents, _) in made.written.items():
        if not documents:
            journal.marked = False  # going on would end here again
            findings = made.findings
            bad = f", bad: {findings.bad}, first {findings.places[0]}" if findings.bad else ""
            raise UserError(
                f"the {split} part has no document with text (valid_fraction="
                f"{config.valid_fraction}; documents in the input: {findings.total}{bad})"
            )
    return made


def _move(config: PreprocessConfig, inputs: Inputs, made: Made, console: Console) -> None:
    """Move the splits to where they belong, and tell of them."""
    from megatron_grow.data.preprocess.writer import move_into_place  # late, as above

    target = Path(config.output_prefix).parent
    move_into_place(config.staging, target, [output.name for output in config.outputs])
    for split, (documents, tokens) in made.written.items():
        console.print(f"{config.prefixes[split]}: {documents:,} documents, {tokens:,} tokens")
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
