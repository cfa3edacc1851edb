"""Two runs of a hundred steps, of which one grew, and what they cost."""

from __future__ import annotations

import json
from pathlib import Path

# A step of the small model costs 1 (layers: 0) and takes 1 s; of the large one 5 (4) and 3 s.
SMALL = {"num_layers": 0, "total": 1, "block": 0, "time": 1.0}
LARGE = {"num_layers": 4, "total": 5, "block": 4, "time": 3.0}


def write_run(
    directory: Path,
    val_loss: dict[int, float],
    *,
    grow_at: int = 0,
    growth_rows: bool = True,
    log_interval: int = 10,
    tokens: int = 64,
    accuracy: dict[int, float] | None = None,
    **growth: object,
) -> Path:
    """100 steps of ``tokens`` that log and evaluate; the model is small until ``grow_at``.

    ``accuracy`` is that of masked tokens; ``growth`` is in the growth's row.
    """
    rows, total, block = [], 0, 0
    for step in range(1, 101):
        model = SMALL if step <= grow_at else LARGE
        total, block = total + model["total"], block + model["block"]
        if step % log_interval == 0:
            rows.append(
                {
                    "step": step,
                    "stage": int(step > grow_at > 0),
                    "num_layers": model["num_layers"],
                    "loss": 3.0,
                    "consumed_tokens": tokens * step,
                    "flops_total": total,
                    "flops_block": block,
                    "step_time": model["time"],
                }
            )
        if step in val_loss:
            rows.append({"step": step, "val_loss": val_loss[step]})
            if accuracy:
                rows[-1]["val_masked_lm_accuracy"] = accuracy[step]
        if step == grow_at and growth_rows:
            rows.append(
                {
                    "event": "growth",
                    "step": step,
                    "stage": 1,
                    "from_layers": 0,
                    "to_layers": 4,
                    "pause_seconds": 10.0,
                    "val_loss_before": val_loss[step],
                    "val_loss_after": val_loss[step] + 1,
                    **growth,
                }
            )
    directory.mkdir()
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


FIXED_SIZE = {20: 5.0, 40: 4.0, 60: 3.0, 80: 2.5, 100: 2.0}
PROGRESSIVE = {20: 5.5, 40: 5.0, 60: 3.6, 80: 2.52, 100: 2.01}
