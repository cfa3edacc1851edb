"""The format of models on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megatron_grow.checkpoint.format import Format
from megatron_grow.checkpoint.layout import DTYPES
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.side_files import CONFIG, of_source, side_files
from megatron_grow.checkpoint.writer import Writer
from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.ranges import Positive

_GIGABYTE = 10**9


@dataclass(frozen=True)
class HuggingFace(Format):
    """A Hugging Face model's directory, weights alone."""

    title, mark = "Hugging Face", CONFIG
    numbered = shared_layers = False
    precisions = ("fp32", "bf16", "fp16")
    exchange = "hf"
    identifying = (CONFIG,)

    family: str | None = field(
        default=None, metadata={"help": "model_type (default: as imported, or what fits)"}
    )
    side_files: Path | None = field(
        default=None,
        metadata={
            "help": "with the tokenizer, generation settings, ...",
            "metavar": "DIR",
        },
    )
    max_shard_size: Positive = field(default=1.0, metadata={"help": "default 1", "metavar": "GB"})

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.side_files is not None and not self.side_files.is_dir():
            raise UserError(f"side_files={self.side_files} is not a directory")

    @classmethod
    def recognises(cls, directory: Path) -> bool:
        """By the configuration, unless it stands in a distributed checkpoint that is not whole."""
        return super().recognises(directory) and not (directory / ".metadata").exists()

    @classmethod
    def open(cls, directory: Path, *, once: bool = False) -> Reader:
        """See :meth:`Format.open`."""
        from megatron_grow.checkpoint.huggingface.reader import HuggingFaceReader

        return HuggingFaceReader(directory)

    def writer(self, directory: Path, source: Reader, record: Record) -> Writer:
        """See :meth:`Format.writer`."""
        from megatron_grow.checkpoint.huggingface.writer import HuggingFaceWriter

        return HuggingFaceWriter(
            directory,
            record.model_config,
            dict.fromkeys(source.tensors, DTYPES[record.precision]),
            family=self.family,
            side_files=self._side_files(source),
            max_shard_size=int(self.max_shard_size * _GIGABYTE),
        )

    def kept_beside(self, source: Reader) -> dict[str, bytes]:
        """Nothing: these files are part of the model's directory."""
        return {}

    def notes(self, source: Reader) -> Iterator[str]:
        """Whether there will be a tokenizer."""
        if not self._side_files(source):
            yield "no tokenizer is known; --side-files names a directory with one"

    @classmethod
    def growth_note(cls, before: ModelConfig, after: ModelConfig) -> str:
        """As which families a grown model can be exported."""
        from megatron_grow.checkpoint.huggingface.config import export_note

        return export_note(before, after)

    def _side_files(self, source: Reader) -> dict[str, bytes]:
        return side_files(self.side_files) if self.side_files else of_source(source)
