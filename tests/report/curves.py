"""Runs whose losses and costs are known in closed form, as they would be in their directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from megatron_grow.config.run import RunConfig, to_yaml
from megatron_grow.config.sections import RunSection, ScheduleSection, TrainSection
from megatron_grow.config.stages import StageSection

# Of a step: of the whole model, of its layers alone, in seconds.
SMALL, LARGE = (1, 0, 1.0), (5, 4, 3.0)


def write_run(
    directory: Path,
    steps: int,
    loss: Callable[[int], float],
    *,
    seed: int = 1,
    grow_at: int = 0,
    every: int = 20,
    decay: float = 0.1,
    done: int | None = None,
    name: str | None = None,
    **train: int,
) -> Path:
    """A run whose validation loss is ``loss(step)``; small until ``grow_at``.

    ``done``: steps after which it was stopped.
    """
    config = RunConfig(
        run=RunSection(name or directory.name, str(directory), seed=seed),
        train=TrainSection(steps, eval_interval=every, **train),
        schedule=ScheduleSection(lr_wsd_decay_fraction=decay),
        stages=[StageSection(until=grow_at), StageSection()] if grow_at else [],
    )
    rows, spent = [], [0, 0]
    for step in range(1, (done or steps) + 1):
        total, block, seconds = SMALL if step <= grow_at else LARGE
        spent = [spent[0] + total, spent[1] + block]
        if step % every and step != steps:
            continue
        progress = {"step": step, "stage": int(step > grow_at > 0), "num_layers": 4}
        progress |= {"consumed_tokens": 64 * step, "flops_total": spent[0], "flops_block": spent[1]}
        rows.append({**progress, "loss": loss(step), "step_time": seconds})
        rows.append({**progress, "val_loss": loss(step)})
        if step == grow_at:
            layers = {"from_layers": 0, "to_layers": 4, "summary": "0 -> 4 layers by random"}
            measured = {"val_loss_before": loss(step), "val_loss_after": loss(step) + 1}
            growth = {"event": "growth", "step": step, "pause_seconds": 0.0}
            rows.append({**growth, **layers, **measured})
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(to_yaml(config))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory
