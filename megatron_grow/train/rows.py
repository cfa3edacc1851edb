"""The rows of ``metrics.jsonl``: what they hold, and reading them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from typing_extensions import NotRequired

from megatron_grow.files.regular import read_regular
from megatron_grow.inputs.errors import UserError

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


class GpuNumbers(TypedDict):
    """What a training row has besides where the run computes on GPUs."""

    tokens_per_second_per_gpu: float
    peak_memory: int
    """Bytes that tensors of the fullest rank have had at most since the stage began."""
    data_wait: float
    """Share of the time that the rank which waited longest for data has waited."""
    mfu: NotRequired[float]
    """Model FLOPs utilisation: what :func:`.cost.flops.model_flops_per_token` counts, as a share of
    the GPU's peak (``logging.peak_tflops``); absent where that is not known."""


class TrainRow(Progress):
    """One log interval; losses and speeds are means over it. On a GPU it has :class:`GpuNumbers`.

    It has further fields for the parts of a loss that is the sum of several, and for metrics such
    as ``masked_lm_accuracy`` (:meth:`.Objective.means`).
    """

    loss: float
    """Over the steps that made an update; NaN if none did."""
    lr: float
    grad_norm: float
    tokens_per_second: float
    step_time: float
    """Seconds of one step."""
    communication_wait: NotRequired[float]
    """Share of the ranks' time that they wait for each other (:mod:`.communication`), 0 for a
    single rank; on GPUs of the interval's middle step, absent where the interval has none."""


class EvaluationRow(Progress):
    """One evaluation, after ``step`` steps; further fields as in a training row, with ``val_``."""

    val_loss: float


class NotFiniteRow(Progress):
    """A step whose loss, gradients or weights are not finite."""

    event: str
    """``not_finite``."""
    found: str
    """What is not finite, and on which ranks."""
    action: str
    """``skip``: the step made no update; ``stop``: the run ended here."""


class StageEndRow(Progress):
    """Where a stage ends that a rule or a method might end, as soon as it is known."""

    event: str
    """``stage_end``."""
    last_step: int
    """The step after which the stage ends."""
    reason: str
    """The rule and what it found, or what a method said; ``at_most`` where nothing was found."""


class ReleaseRow(Progress):
    """A branch that leaves the run after ``step`` steps, to be a model of its own."""

    event: str
    """``release``."""
    name: str
    steps: int
    """Of the branch."""
    output_dir: str
    """Of the branch, a run like any other."""


OfLayers = dict[str, float | list[float | None]]
"""By a tensor's key, or a place in the model: a number for each of its layers, None for those that
have it not; or one number, of what is in no layer. To four digits."""


class LayersRow(Progress):
    """How large layers are, what they compute and learn (:class:`.LayerNumbers`), in one step.

    All but ``entropy`` are root mean squares.
    """

    event: str
    """``layers``."""
    weight: OfLayers
    """After the update."""
    gain: OfLayers
    """Of norms, after the update."""
    update: OfLayers
    """What the update has changed."""
    gradient: OfLayers
    """Of the global batch, before clipping."""
    activation: OfLayers
    """``residual_stream`` behind each layer, what ``attention`` and ``mlp`` add to it, and the
    ``embedding`` before all."""
    entropy: OfLayers
    """Of attention, the mean over heads and some queries, in nats."""


class DyingLayersRow(Progress):
    """Layers that a growth has made, and that have been below ``train.dying_share`` for a while."""

    event: str
    """``dying_layers``."""
    found: list[dict[str, Any]]
    """Of each tensor: ``signal``, ``key``, ``layers``, their ``shares`` of what others have, and
    the step ``since`` which (:class:`.Dying`)."""


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
    groups_seconds: float
    """Of the pause: to build the process groups of the new layout and connect their ranks."""
    val_loss_before: float | None
    """None where the run does not evaluate."""
    val_loss_after: float | None
    """None also where a stop request came before; then the resumed run has an evaluation row.
    Further fields, such as ``val_masked_lm_loss_after``, as in an evaluation row."""


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


def is_accuracy(name: str) -> bool:
    """Whether that number is an accuracy, of which a percentage is easier to read."""
    return name.endswith("_accuracy")


def kind_of(row: Mapping[str, Any]) -> str:
    """``train``, ``validation``, or the event."""
    return row.get("event") or ("validation" if "val_loss" in row else "train")


def key_of(row: Mapping[str, Any]) -> tuple[int, str, int]:
    """What tells a row from all others of its run."""
    return row["step"], kind_of(row), row.get("stage", 0)
