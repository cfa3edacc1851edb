"""The record of a run: ``metrics.jsonl``, mirrored to TensorBoard and Weights & Biases."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_grow.inputs.errors import UserError
from megatron_grow.train.row_file import RowFile, keep_previous, rewind
from megatron_grow.train.rows import FILE_NAME, key_of, kind_of, read_rows


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
        self._path = path = output_dir / FILE_NAME
        if begins or resume_step == 0:
            keep_previous(path)
        self._already_written, self._evaluated = rewind(path, resume_step, resume_stage)
        self._warn = warn
        self._rows = RowFile(path, warn)
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
        """Append a row of any class in :mod:`~megatron_grow.train.rows`.

        A row of the very step from which the run resumes is not written twice.
        """
        if key_of(row) in self._already_written:
            return
        self._rows.append(json.dumps(_storable(row), allow_nan=False).encode() + b"\n")

        scalars = {f"{kind_of(row)}/{name}": value for name, value in _scalars(row).items()}
        try:
            if self._tensorboard is not None:
                self._tensorboard.file_writer.add_summary(_summary(scalars), row["step"])
        except OSError as error:  # of its thread, which has ended
            self._tensorboard = None
            self._warn(f"TensorBoard gets no more of this run: {error}")
        if self._wandb is not None:
            self._wandb.log(scalars, step=row["step"])

    def rows(self) -> list[dict[str, Any]]:
        """All that the log has."""
        return read_rows(self._path)

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


def _storable(value: Any) -> Any:
    """The same, with None for what JSON cannot hold."""
    if isinstance(value, Mapping):
        return {name: _storable(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by their names; those of layers as ``weight/KEY/3``."""
    found = {name: value for name, value in row.items() if name != "step"}
    for name, named in row.items():
        if isinstance(named, Mapping):
            for key, value in named.items():
                of_layers = enumerate(value) if isinstance(value, list) else ()
                found |= {f"{name}/{key}": value}
                found |= {f"{name}/{key}/{layer}": number for layer, number in of_layers}
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}


def _summary(scalars: Mapping[str, float]) -> Any:
    """One for all: TensorBoard takes 50 us for each by itself."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
    return Summary(value=values)


def check_wandb(project: str | None) -> None:
    """Raise :class:`UserError` where Weights & Biases is asked for and not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"logging.wandb_project={project} needs the package wandb, which is not "
            "installed; run `pip install wandb` or leave the field out"
        )
