"""What goes with a model besides its weights: tokenizer, generation settings."""

from __future__ import annotations

from pathlib import Path

from megatron_grow.checkpoint.huggingface.files import CONFIG, side_files
from megatron_grow.checkpoint.layout import SIDE_FILES
from megatron_grow.checkpoint.source import Source


def imported_with(source: Source) -> dict[str, Path]:
    """The files of the Hugging Face model that ``source`` is, or was imported from, by name."""
    kept = source.path / SIDE_FILES
    return side_files(kept if kept.exists() else source.path)


def of_source(source: Source) -> dict[str, Path]:
    """The same; of a checkpoint that a run wrote, the files of the tokenizer which the run used."""
    if found := imported_with(source):
        return found
    data = source.record.config.get("data", {})
    tokenizer = Path(data.get("tokenizer") or "")
    if tokenizer.is_file():
        if (tokenizer.parent / CONFIG).exists():
            return side_files(tokenizer.parent)
        return {"tokenizer.json": tokenizer}
    named = {"vocab.json": data.get("vocab_file"), "merges.txt": data.get("merge_file")}
    return {name: Path(path) for name, path in named.items() if path and Path(path).is_file()}
