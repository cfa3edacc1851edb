"""When to grow: what the rules choose, beside a sweep of growth steps and finished fixed-size runs.

  s=examples/study/when_to_grow
  python $s/study.py data books.jsonl books.valid.jsonl             corpora, a vocabulary
  python tools/calibrate.py $s/run.yaml --output runs/study_when_to_grow/calibration --seeds 1 2 3
  python $s/study.py run --seed 1                                   all of one seed
  python $s/study.py figure growths runs/when_to_grow               a report of what has finished

On one CPU core. A run that has finished is left as it is, one that was stopped goes on. Each run's
metrics say when it grew and why. Without a mixing time `calibrated` is refused: name the others.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from driver import Figure, Stages, Study, Variant


def _grown(until: Any) -> Stages:
    """One layer ``until`` then, and its copies."""
    return [{"until": until, "model": {"num_layers": 1}}, {"grow": {"depth": "copying_stack"}}]


_RULE = {
    "calibration": "runs/study_when_to_grow/calibration/calibration.yaml",
    "at_most": 0.95,
    "every": 50,
}
_GROWN = {
    **{f"grown_at_{share}": Variant(stages=_grown(share)) for share in (0.25, 0.5, 0.75, 0.9)},
    "calibrated": Variant(stages=_grown({"rule": "calibrated", **_RULE})),
    "head_start": Variant(
        stages=_grown({"rule": "head_start", **_RULE, "losses": "validation", "window": 10})
    ),
}
_FIXED = {"full": Variant(), **{f"fixed_{share}": Variant(share) for share in (0.25, 0.5, 0.75)}}

STUDY = Study(
    folder=Path(__file__).resolve().parent,
    variants=_FIXED | _GROWN,
    figures={"growths": Figure(tuple(_GROWN), tuple(_FIXED))},
    corpus=("--append-eod",),
    vocabulary=("--train-tokenizer", "1024"),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
