"""What a run says while it trains."""

from __future__ import annotations

from collections.abc import Mapping

import rich.console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from megatron_grow.train.rows import (
    EvaluationRow,
    GpuNumbers,
    GrowthRow,
    ReleaseRow,
    StageEndRow,
    TrainRow,
    is_accuracy,
)


class Console:
    """Progress of a run for the person who watches: a live bar on a terminal, else plain lines.

    A context manager, so that the terminal is left in order whatever ends the run.
    """

    def __init__(self, total_steps: int, enabled: bool = True, progress_bar: bool = True) -> None:
        """Prepare to report on ``total_steps`` steps.

        Args:
            total_steps: global steps of the whole run.
            enabled: whether this rank speaks; where it is false every method does nothing.
            progress_bar: a live bar where the console is a terminal.
        """
        self._total_steps = total_steps
        self._console = rich.console.Console(quiet=not enabled, highlight=False)
        self._console.soft_wrap = not self._console.is_terminal  # one line stays one in a log file
        self._bar: Progress | None = None
        if enabled and progress_bar and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.completed}/{task.total}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:.0f}%"),
                TextColumn("{task.description}"),
                console=self._console,
                auto_refresh=False,  # no thread beside the training loop
            )
            self._task = self._bar.add_task("", total=total_steps)
            self._bar.start()

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def train_row(
        self, row: TrainRow, others: Mapping[str, float], gpu: GpuNumbers | None = None
    ) -> None:
        """Move the bar to a training row, or print its line.

        Args:
            row: what is reported.
            others: further losses and metrics.
            gpu: what is told of GPUs, where the run computes on some.
        """
        step = row["step"]
        where = f"stage {row['stage']}, {_layers(row['num_layers'])} | loss {row['loss']:.4f}"
        speed = (
            f"{row['tokens_per_second']:,.0f} tokens/s | {_of_gpus(gpu, row)}"
            f"ETA {_duration((self._total_steps - step) * row['step_time'])}"
        )
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step, description=f"{where} | {speed}", refresh=True
            )
        else:
            where += _parts(others)  # the bar has one line of a terminal, and no room for them
            rates = f"lr {row['lr']:.2e} | grad norm {row['grad_norm']:.3f}"
            self.message(f"{self._position(step)} | {where} | {rates} | {speed}")

    def evaluation(self, row: EvaluationRow, others: Mapping[str, float]) -> None:
        """Print a validation loss; ``others`` are the row's further numbers."""
        self.message(
            f"{self._position(row['step'])} | stage {row['stage']}, {_layers(row['num_layers'])} | "
            f"validation loss {row['val_loss']:.4f}{_parts(others)}"
        )

    def stage_end(self, row: StageEndRow) -> None:
        """Print where a stage ends, and why."""
        self.message(
            f"{self._position(row['step'])} | stage {row['stage']} ends after step "
            f"{row['last_step']} ({row['reason']})"
        )

    def growth(self, row: GrowthRow) -> None:
        """Print what grew, from and to which layout and batch, and what it took."""
        if row["from_layers"] != row["to_layers"]:
            event = f"grew from {row['from_layers']} to {_layers(row['to_layers'])}"
        else:
            event = f"stage {row['stage']}, {row['summary']}"
        lines = [
            f"{self._position(row['step'])} | {event}",
            f"layout      {row['from_layout']} -> {row['to_layout']}",
            f"parameters  {row['from_parameters']:,} -> {row['to_parameters']:,}",
            f"moved       {_bytes(row['bytes_moved'])} between ranks, "
            f"pause {row['pause_seconds']:.2f} s",
        ]
        if row["from_layers"] != row["to_layers"] and any(mark in row["summary"] for mark in ",;"):
            lines.insert(1, f"growth      {row['summary']}")
        if row["from_batch"] != row["to_batch"]:
            lines.insert(-2, f"batch       {row['from_batch']} -> {row['to_batch']} tokens")
        if row["val_loss_before"] is not None:
            before, after = row["val_loss_before"], row["val_loss_after"]
            told = "not measured after: asked to stop" if after is None else f"{after:.4f} after"
            lines.append(f"val loss    {before:.4f} before, {told}")
        self.message("\n    ".join(lines))

    def release(self, row: ReleaseRow) -> None:
        """Print that a branch leaves the run."""
        self.event(
            row["step"],
            f"releases {row['name']}: {row['steps']} steps of its own in {row['output_dir']}",
        )

    def event(self, step: int, text: str) -> None:
        """Print what happened in a step."""
        self.message(f"{self._position(step)} | {text}")

    def checkpoint(self, step: int, path: object) -> None:
        """Print that the checkpoint of ``step`` is complete at ``path``."""
        self.event(step, f"saved {path}")

    def warning(self, text: str) -> None:
        """Print something the user should look at."""
        self._console.print(Text(f"warning: {text}", style="yellow"))

    def message(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self._console.print(Text(text))

    def close(self) -> None:
        """Leave the bar as it stands and give the terminal back."""
        if self._bar is not None:
            self._bar.stop()

    def _position(self, step: int) -> str:
        width = len(str(self._total_steps))
        return f"step {step:>{width}}/{self._total_steps}"


def _parts(others: Mapping[str, float]) -> str:
    """`` (masked_lm 6.1304 7.1 %, sentence 0.6931 50.2 %)``: losses, and accuracies of the same."""
    found: dict[str, list[str]] = {}
    for name, value in others.items():
        what = name.removeprefix("val_").removesuffix("_loss").removesuffix("_accuracy")
        told = f"{100 * value:.1f} %" if is_accuracy(name) else f"{value:.4f}"
        found.setdefault(what, [what]).append(told)
    return f" ({', '.join(map(' '.join, found.values()))})" if others else ""


def _of_gpus(gpu: GpuNumbers | None, row: TrainRow) -> str:
    """``MFU 41.2 % | 23.4 GB | ``, for a line that goes on; what they wait for where it matters."""
    if gpu is None:
        return ""
    parts = [f"MFU {100 * gpu['mfu']:.1f} %"] if "mfu" in gpu else []
    parts.append(_bytes(gpu["peak_memory"]))
    waits = {"data": gpu["data_wait"], "communication": row.get("communication_wait", 0.0)}
    parts += [
        f"{100 * share:.0f} % waiting for {what}" for what, share in waits.items() if share >= 0.01
    ]
    return "".join(f"{part} | " for part in parts)


def _layers(number: int) -> str:
    return "1 layer" if number == 1 else f"{number} layers"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
