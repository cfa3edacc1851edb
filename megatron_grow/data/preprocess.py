"""Raw corpora to Megatron's indexed format: what ``tools/preprocess_data.py`` runs."""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from megatron_grow.config.errors import UserError
from megatron_grow.data.corpora import DEFAULT_GLOBS, find_files, read_chunks, read_texts
from megatron_grow.data.encode import Encoder, encode_in_order
from megatron_grow.data.tokenizers import tokenizer_digest, train_bpe

_SUFFIXES = (".bin", ".idx", ".json")


@dataclass(frozen=True)
class PreprocessConfig:
    """What to read, how to encode it and where to write it."""

    input: list[str]
    """Files of JSON lines or text (.gz and .xz too), and directories of such files."""
    output_prefix: str
    """Writes PREFIX_text_document.{bin,idx,json}: the JSON key and what a sequence is."""
    json_key: str = "text"
    """Key of the text in a JSON line."""
    glob: tuple[str, ...] = DEFAULT_GLOBS
    """Names of files taken from a directory."""
    exclude: tuple[str, ...] = ()
    """Names of files and folders left out of a directory."""
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
        if self.workers < 1:
            raise UserError(f"workers={self.workers} must be at least 1")

    @property
    def prefixes(self) -> dict[str, str]:
        """Output prefix of each part: ``train`` and, if documents are held out, ``valid``."""
        level = "sentence" if self.split_sentences else "document"
        parts = {"train": "", "valid": "_valid"} if self.valid_fraction else {"train": ""}
        return {
            part: f"{self.output_prefix}{infix}_{self.json_key}_{level}"
            for part, infix in parts.items()
        }

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer as a run file names it."""
        return self.tokenizer if self.train_tokenizer is None else self.tokenizer_path

    @property
    def tokenizer_path(self) -> str:
        """Where a trained tokenizer is written."""
        return f"{self.output_prefix}-tokenizer.json"

    def part(self, document: int) -> str:
        """Which part document number ``document`` (from 0, empty ones counted) belongs to."""
        share = self.valid_fraction
        held_out = math.floor((document + 1) * share + 0.5) - math.floor(document * share + 0.5)
        return "valid" if held_out else "train"


def preprocess(config: PreprocessConfig, console: Console) -> dict[str, str]:
    """Encode the input into an indexed corpus for each part; returns ``config.prefixes``.

    Memory is bounded by the largest documents, not by the corpus. Everything is written in a
    staging directory beside the output and moved when it is whole.

    Raises:
        UserError: input that is missing or cannot be read; output that exists; an empty part.
    """
    files = find_files(config.input, config.glob, config.exclude)
    _refuse_existing(config)
    output = Path(config.output_prefix)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{output.name}.partial-", dir=output.parent) as folder:
        staging = Path(folder)
        encoder = _prepare_encoder(config, files, staging, console)
        _write_parts(config, files, encoder, staging, console)
    return config.prefixes


def _refuse_existing(config: PreprocessConfig) -> None:
    outputs = [prefix + suffix for prefix in config.prefixes.values() for suffix in _SUFFIXES]
    if config.train_tokenizer is not None:
        outputs.append(config.tokenizer_path)
    for output in outputs:
        if Path(output).exists() and not config.overwrite:
            raise UserError(f"{output} exists; choose another --output-prefix or give --overwrite")


def _prepare_encoder(
    config: PreprocessConfig, files: list[Path], staging: Path, console: Console
) -> Encoder:
    """Load or train what turns text into tokens."""
    tokenizer = config.tokenizer
    if config.train_tokenizer is not None:
        console.print(f"Training a BPE of {config.train_tokenizer} tokens on the input")
        texts = read_texts(files, config.json_key)
        kept = (text for number, text in enumerate(texts) if config.part(number) == "train")
        tokenizer = str(staging / Path(config.tokenizer_path).name)
        train_bpe(kept, config.train_tokenizer).save(tokenizer)
    splitter = None
    if config.split_sentences:
        from megatron_grow.data.sentences import installed_splitter, train_splitter

        splitter = installed_splitter(config.language)
        if splitter is None:
            console.print(f"Training Punkt on the input: no model for {config.language} is here")
            splitter = train_splitter(read_texts(files, config.json_key))
    return Encoder(
        tokenizer=tokenizer,
        vocab_file=config.vocab_file,
        merge_file=config.merge_file,
        json_key=config.json_key,
        append_eod=config.append_eod,
        split_sentences=splitter,
    )


def _write_parts(
    config: PreprocessConfig, files: list[Path], encoder: Encoder, staging: Path, console: Console
) -> None:
    """Encode and write all documents, then publish the parts."""
    tokenizer = encoder.load_tokenizer()
    # Imported late: megatron-core takes seconds, which bad input should not wait for.
    from megatron_grow.data.indexed import Sidecar
    from megatron_grow.data.writer import CorpusWriter, publish

    started = time.monotonic()
    writers = {
        part: CorpusWriter(staging / Path(prefix).name, tokenizer.vocab_size)
        for part, prefix in config.prefixes.items()
    }
    numbers = count()
    with _progress_bar(console) as progress:
        bar = progress.add_task("Encoding", total=sum(f.stat().st_size for f in files), rate="")
        for chunk in encode_in_order(read_chunks(files), encoder, config.workers):
            for document in chunk.documents:
                writer = writers[config.part(next(numbers))]
                if document.lengths:
                    writer.add(document.tokens, document.lengths)
            rate = sum(w.tokens for w in writers.values()) / (time.monotonic() - started)
            progress.update(bar, advance=chunk.disk_bytes, rate=f"{rate:,.0f} tokens/s")
    for part, writer in writers.items():
        if not writer.documents:
            raise UserError(
                f"the {part} part has no document with text (valid_fraction="
                f"{config.valid_fraction}, {next(numbers)} documents in the input)"
            )
        writer.finish(
            Sidecar(
                tokenizer=config.tokenizer_name,
                vocab_size=tokenizer.vocab_size,
                eod=tokenizer.eod,
                append_eod=config.append_eod,
                documents=writer.documents,
                tokens=writer.tokens,
                tokenizer_digest=tokenizer_digest(tokenizer),
            )
        )
    publish(staging, Path(config.output_prefix).parent)
    for part, writer in writers.items():
        console.print(
            f"{config.prefixes[part]}: {writer.documents:,} documents, {writer.tokens:,} tokens"
        )
    console.print(f"{rate:,.0f} tokens/s in {time.monotonic() - started:.1f} s")


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
