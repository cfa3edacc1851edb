"""Megatron-LM's format of before ``torch_dist``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_grow.checkpoint.format import Format
from megatron_grow.checkpoint.legacy.names import LEGACY
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.writer import Writer
from megatron_grow.config.parallel import ParallelConfig


@dataclass(frozen=True)
class Legacy(Format):
    """Megatron's legacy files, for exactly this layout, weights alone."""

    title, mark = "legacy torch", f"mp_rank_00*/{LEGACY}"
    layouts, shared_layers = True, False
    factors = False  # Megatron-LM, for which it is written, would compute without them

    fused_norms: bool = True
    """Norms have the names of layers of Transformer Engine, which Megatron-LM takes by default;
    else those of ``--transformer-impl local``."""

    @classmethod
    def open(cls, directory: Path, *, once: bool = False) -> Reader:
        """See :meth:`Format.open`."""
        from megatron_grow.checkpoint.legacy.reader import LegacyReader

        return LegacyReader(directory)

    def writer(self, directory: Path, source: Reader, record: Record) -> Writer:
        """See :meth:`Format.writer`."""
        from megatron_grow.checkpoint.legacy.writer import LegacyWriter

        layout = ParallelConfig(**record.parallel)
        return LegacyWriter(directory, record, source.tensors, layout, fused_norms=self.fused_norms)
