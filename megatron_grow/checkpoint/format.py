"""What is known of a checkpoint format before one of its directories is opened."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch.distributed as dist

from megatron_grow.checkpoint.manifest import Shard
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.side_files import imported_with
from megatron_grow.checkpoint.writer import Writer
from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.ranges import check_fields
from megatron_grow.state.piece import Piece
from megatron_grow.state.tensors import LogicalTensor


@dataclass(frozen=True)
class Format(ABC):
    """A way to keep training state, or weights, in a directory; fields are options of writing.

    The metadata of a field are what :meth:`argparse.ArgumentParser.add_argument` takes.
    """

    title: ClassVar[str]
    """For people."""
    mark: ClassVar[str]
    """A file that every whole checkpoint has and no other directory; it may be a pattern."""
    numbered: ClassVar[bool] = True
    """Whether its checkpoints stand in a root, each by the number of its step, with a tracker file;
    else a checkpoint is a directory of any name."""
    optimizer_state: ClassVar[bool] = False
    """Whether it holds an optimizer's state."""
    resumes: ClassVar[bool] = False
    """Whether a run goes on from it as from one that it saved itself."""
    layouts: ClassVar[bool] = False
    """Whether it is cut for a parallel layout; else a layout makes no difference to it."""
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16")
    """Of weights."""
    shared_layers: ClassVar[bool] = True
    """Whether it holds once what layers share; else it is written once for each of them."""
    factors: ClassVar[bool] = True
    """Whether it can hold factors in a model's function (:attr:`.ModelConfig.factors`)."""
    exchange: ClassVar[str] = ""
    """Ends the verbs ``import-`` and ``export-`` of a format of another program; else empty."""
    identifying: ClassVar[tuple[str, ...]] = ()
    """Small files that differ between any two checkpoints, besides manifest and record."""

    def __post_init__(self) -> None:
        """Check the ranges of options."""
        check_fields(self)

    @classmethod
    def recognises(cls, directory: Path) -> bool:
        """Whether a whole checkpoint of this format is there."""
        return any(directory.glob(cls.mark))

    @classmethod
    @abstractmethod
    def open(cls, directory: Path, *, once: bool = False) -> Reader:
        """The checkpoint in ``directory``.

        Args:
            directory: of one checkpoint.
            once: whether its values are read only once, so that the page cache need not keep them.

        Raises:
            UserError: it is damaged, or of what cannot be built here.
        """

    @classmethod
    def record(cls, directory: Path) -> Record:
        """Where training stands, read before anything else; errors as :meth:`open`."""
        return cls.open(directory).record

    @abstractmethod
    def writer(self, directory: Path, source: Reader, record: Record) -> Writer:
        """A writer of what ``source`` holds.

        Args:
            directory: where the files will be.
            source: what is written: its tensors and kinds of state.
            record: what is said of it: the source's, of the precision and layout asked for.

        Raises:
            UserError: the format cannot express the model.
        """

    @classmethod
    def save(
        cls,
        directory: Path,
        record: Record,
        pieces: Sequence[Piece],
        tensors: dict[str, LogicalTensor],
        *,
        with_optimizer: bool,
        group: dist.ProcessGroup | None,
    ) -> tuple[Iterable[str], dict[str, Shard]]:
        """Write the live state of a run; every rank takes part. Only the default format needs it.

        Args:
            directory: where the files will be; there, and empty.
            record: where the run stands.
            pieces: this rank's state, of which it writes what it owns.
            tensors: the model's.
            with_optimizer: write main parameters and moments too.
            group: over which the ranks agree, as :func:`.agreement.gather`.

        Returns:
            On rank 0, what :class:`Writer` calls ``companions`` and ``shards``.

        Raises:
            AgreedError: a file system refuses, or rank 0 does not see what another rank wrote.
        """
        raise NotImplementedError(f"runs do not save in the {cls.title} format")

    def kept_beside(self, source: Reader) -> dict[str, bytes]:
        """By name, files of an imported model that are kept in a directory of their own."""
        return imported_with(source)

    def notes(self, source: Reader) -> Iterable[str]:
        """What the user should know before ``source`` is written."""
        return ()

    @classmethod
    def growth_note(cls, before: ModelConfig, after: ModelConfig) -> str:
        """Whether it still holds a model that is grown, for people; empty: it holds any."""
        return ""
