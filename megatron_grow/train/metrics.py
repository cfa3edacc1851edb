"""The record of a run: ``metrics.jsonl``, mirrored to TensorBoard and Weights & Biases."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, TypedDict

from megatron_grow.checkpoint.regular import read_regular
from megatron_grow.config.errors import UserError

FILE_NAME = "metrics.jsonl"


class Progress(TypedDict):
    """Where the run is; the costs count from its start."""

    step: int
    """Global steps done; 1 for the first."""
    stage: int
    num_layers: int
    consumed_tokens: int
    flops_total: int
    """Whole model, embedding and head included (``cost.flops.flops_at_step``)."""
    flops_block: int
    """Transformer layers alone."""


class TrainRow(Progress):
    """One log interval; ``loss`` and the speeds are means over it."""

    loss: float
    """Over the steps that made an update; NaN if none did."""
    lr: float
    grad_norm: float
    tokens_per_second: float
    step_time: float
    """Seconds of one step."""


class EvaluationRow(Progress):
    """One evaluation, after ``step`` steps."""

    val_loss: float


class NotFiniteRow(Progress):
    """A step whose loss, gradients or weights are not finite."""

    event: str
    """``not_finite``."""
    found: str
    """What is not finite, and on which ranks."""
    action: str
    """``skip``: the step made no update; ``stop``: the run ended here."""


class GrowthRow(TypedDict):
    """One growth, between ``step`` and the next."""

    event: str
    """``growth``."""
    step: int
    stage: int
    """The stage that begins."""
    summary: str
    """What grew and by which operators."""
    from_layers: int
    to_layers: int
    from_layout: str
    to_layout: str
    from_batch: str
    """Sequences by tokens of one global batch: ``8 x 1024``."""
    to_batch: str
    from_parameters: int
    to_parameters: int
    bytes_moved: int
    """From one rank to another, over all ranks."""
    pause_seconds: float
    val_loss_before: float | None
    """None where the run does not evaluate."""
    val_loss_after: float | None
    """None also where a stop request came before; then the resumed run has an evaluation row."""


class MetricsLog:
    """Appends rows to ``output_dir/metrics.jsonl``, each visible as soon as it is written.

    Numbers that JSON cannot hold (NaN and the infinities) become ``null``. For one rank only.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        resume_step: int = 0,
        begins: bool = False,
        resume_stage: int | None = None,
        tensorboard: bool = False,
        wandb_project: str | None = None,
        wandb_id: str | None = None,
        run_name: str | None = None,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        """Open the log of a run that continues after ``resume_step`` steps.

        Rows of later steps and stages move to the end of ``metrics.jsonl.dropped``, because the run
        will write them again. Of a run that ``begins``, or goes on from step 0, all rows that are
        there are of an earlier attempt, and move to ``metrics.jsonl.previous``, ``.previous.2`` and
        so on.

        Args:
            output_dir: the run's directory; made if it does not exist.
            resume_step: steps done by the checkpoint that the run starts from.
            begins: whether that checkpoint, if there is one, is another run's.
            resume_stage: its stage, if it is known; the growth into the next may be at the same
                step.
            tensorboard: mirror to ``output_dir/tensorboard``.
            wandb_project: mirror to this Weights & Biases project.
            wandb_id: go on with this run of it.
            run_name: what Weights & Biases calls the run.
            warn: told, once for each, what could not be written; the run goes on.

        Raises:
            UserError: wandb is asked for and not installed.
        """
        check_wandb(wandb_project)
        output_dir = Path(output_dir)
        output_dir.mkdir(parents=True, exist_ok=True)
        path = output_dir / FILE_NAME
        if begins or resume_step == 0:
            _keep(path)
        self._already_written, self._evaluated = _rewind(path, resume_step, resume_stage)
        self._warn = warn
        self._rows = _Rows(path, warn)
        self._tensorboard: Any = None
        self._wandb: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(
                str(output_dir / "tensorboard"), purge_step=resume_step + 1
            )
        if wandb_project:
            import wandb

            # Steps that it knows already are ignored there; the resumed run repeats their values.
            self._wandb = wandb.init(
                project=wandb_project,
                name=run_name,
                dir=str(output_dir),
                id=wandb_id,
                resume="allow" if wandb_id else None,
            )
        self.wandb_id: str | None = self._wandb.id if self._wandb is not None else None
        """What a later start names to go on with this run at Weights & Biases."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row of any class above.

        A row of the very step from which the run resumes is not written twice.
        """
        if _identity(row) in self._already_written:
            return
        storable = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        self._rows.append(json.dumps(storable, allow_nan=False).encode() + b"\n")

        scalars = {
            f"{_kind(row)}/{name}": value
            for name, value in row.items()
            if isinstance(value, (int, float)) and name != "step"
        }
        try:
            if self._tensorboard is not None:
                for name, value in scalars.items():
                    self._tensorboard.add_scalar(name, value, row["step"])
        except OSError as error:  # of its thread, which has ended
            self._tensorboard = None
            self._warn(f"TensorBoard gets no more of this run: {error}")
        if self._wandb is not None:
            self._wandb.log(scalars, step=row["step"])

    def has_evaluation(self, step: int, stage: int) -> bool:
        """Whether the log as it was opened says what the loss was after ``step`` in ``stage``."""
        return (step, stage) in self._evaluated

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        # A failed run must not wait for the network; its wandb sees that the process is gone.
        self._wandb = self._wandb if kind is None else None
        self.close()

    def close(self) -> None:
        """Flush and close everything."""
        self._rows.close()
        if self._tensorboard is not None:
            with contextlib.suppress(OSError):
                self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


class _Rows:
    """Appends lines to a file; those that a full disk refuses wait until there is room."""

    def __init__(self, path: Path, warn: Callable[[str], None]) -> None:
        self._path, self._warn = path, warn
        self._file = path.open("ab", buffering=0)
        self._waiting: list[bytes] = []

    def append(self, line: bytes) -> None:
        """Write ``line``, after those that wait."""
        refused = bool(self._waiting)
        self._waiting.append(line)
        try:
            while self._waiting:
                self._write(self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            if not refused:
                self._warn(
                    f"{self._path} cannot be written: {error.strerror}; the run goes on, and its "
                    "rows wait for room"
                )
        else:
            if refused:
                self._warn(f"{self._path} is written again, and complete")

    def close(self) -> None:
        if self._waiting:
            self._warn(f"{self._path} lacks the last {len(self._waiting)} rows of the run")
        self._file.close()

    def _write(self, line: bytes) -> None:
        """All of ``line`` or nothing: half a row would make the file unreadable."""
        end, done = self._file.seek(0, os.SEEK_END), 0
        try:
            while done < len(line):
                done += self._file.write(line[done:])
        except OSError:
            self._file.truncate(end)
            raise


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``, without a last line that a kill tore.

    Raises:
        UserError: no such file, or a line that is not a row.
    """
    try:
        lines = read_regular(path).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as metrics of a run: {error}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                break
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise UserError(
                f"{path}:{number} is not a JSON object with an integer step: {line:.60}"
            )
        rows.append(row)
    return rows


def rows_of(output_dir: str | Path) -> list[dict[str, Any]]:
    """The rows of a run so far; none where it has not begun.

    Raises:
        UserError: as :func:`read_rows`.
    """
    path = Path(output_dir) / FILE_NAME
    return read_rows(path) if path.exists() else []


def check_wandb(project: str | None) -> None:
    """Raise :class:`UserError` where Weights & Biases is asked for and not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"logging.wandb_project={project} needs the package wandb, which is not "
            "installed; run `pip install wandb` or leave the field out"
        )


def write_atomically(path: Path, data: bytes) -> None:
    """Make ``path`` hold ``data``, or leave it as it was."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _kind(row: Mapping[str, Any]) -> str:
    return row.get("event") or ("validation" if "val_loss" in row else "train")


def _identity(row: Mapping[str, Any]) -> tuple[int, str, int]:
    return row["step"], _kind(row), row.get("stage", 0)


def _rewind(
    path: Path, step: int, stage: int | None
) -> tuple[set[tuple[int, str, int]], set[tuple[int, int]]]:
    """Move the rows after ``step`` of ``stage`` aside.

    Returns:
        Which rows ``step`` itself has, and which evaluations.
    """
    if not path.exists():
        return set(), set()
    kept: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    for row in read_rows(path):
        later = row["step"] > step or (stage is not None and row.get("stage", 0) > stage)
        (dropped if later else kept).append(row)
    if dropped:
        with path.with_name(path.name + ".dropped").open("ab") as file:
            file.write(_lines(dropped))
            file.flush()
            os.fsync(file.fileno())
    write_atomically(path, _lines(kept))
    last = [row for row in kept if row["step"] == step]
    measured = [row for row in last if "val_loss" in row or row.get("val_loss_after") is not None]
    return {_identity(row) for row in last}, {(step, row.get("stage", 0)) for row in measured}


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _keep(path: Path) -> None:
    """Rename a log that is there to the first name that is free."""
    if not path.exists():
        return
    kept = path.with_name(path.name + ".previous")
    for number in count(2):
        if not kept.exists():
            break
        kept = path.with_name(f"{path.name}.previous.{number}")
    path.rename(kept)
