"""What a conversion writes, and where: checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megatron_grow.checkpoint.format import Format
from megatron_grow.checkpoint.layout import step_dir
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.record import Record
from megatron_grow.checkpoint.writer import Writer
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.convert.checks import check_held, check_layout, check_precision
from megatron_grow.convert.conversion import Outcome, check_destination, convert
from megatron_grow.convert.progress import Progress
from megatron_grow.growth.offline import spelled_out
from megatron_grow.parallel.agreement import leads, together


@dataclass(frozen=True)
class Target:
    """A source in the format that it is to have."""

    source: Reader
    made: Format
    record: Record
    """The source's, of the precision and the layout that are written."""
    final: Path
    """Where it will be."""

    def writer(self, directory: Path) -> Writer:
        """That of the format, in the directory where it is written first."""
        return self.made.writer(directory, self.source, self.record)

    def write(self, *, threads: int, verifies: bool) -> Outcome:
        """As :func:`~.conversion.convert`; every process takes part."""
        return convert(
            self.source,
            self.final,
            self.writer,
            step=self.record.step if self.made.numbered else None,
            side_files=together(lambda: self.made.kept_beside(self.source)),
            threads=threads,
            verifies=verifies,
            progress=Progress(leads()),
        )


def target(
    source: Reader,
    made: Format,
    dst: Path,
    *,
    precision: str | None = None,
    allow_rounding: bool = False,
    layout: ParallelConfig | None = None,
    notes: Sequence[str] = (),
    tell: Callable[[str], None],
) -> Target:
    """What is written of ``source`` in the format ``made``, and where; every process takes part.

    Args:
        source: what is written.
        made: the format, with its options.
        dst: a directory; the root of checkpoints where they are numbered.
        precision: of weights; absent: the source's.
        allow_rounding: whether weights may lose bits.
        layout: that it is cut for, where that makes a difference.
        notes: what is to be told besides.
        tell: is told what the user should know.

    Raises:
        UserError: the format cannot hold it, weights would lose bits, or something is in the way.
    """
    layout = layout or ParallelConfig()
    if not made.shared_layers:
        source = spelled_out(source)
    precision = precision or source.record.precision
    # Training itself has rounded the weights that it computed with.
    rounded = precision == source.record.precision and source.of_a_run
    check_precision(source, precision, allow_rounding or source.trains or rounded)
    check_layout(source.record.model_config, layout)
    check_held(source, made, precision)
    record = replace(source.record, precision=precision, parallel=asdict(layout))
    for note in (*source.notes, *notes, *together(lambda: list(made.notes(source)))):
        tell(f"note: {note}")
    # A link to an empty directory stays.
    final = step_dir(dst, record.step) if made.numbered else dst.resolve()
    together(lambda: check_destination(dst, final, source.path) if leads() else None)
    return Target(source, made, record, final)
