"""The study of GPT at the width and vocabulary of GPT-2 124M, on one GPU.

  python examples/study/gpt_124m/study.py data books.jsonl books.valid.jsonl   corpora, a vocabulary
  python examples/study/gpt_124m/study.py run full one zero --seed 1           all if none is named
  python examples/study/gpt_124m/study.py table                                what has finished
  python examples/study/gpt_124m/study.py figure growth runs/growth            a report of some

A run that has finished is left as it is, one that was stopped goes on. Several can run at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from driver import Figure, Stages, Study, Variant
from growths import grown, ladder

LENGTHS = {"full": 1.0, "eighth": 1 / 8, "quarter": 1 / 4, "half": 1 / 2}
GROWN: dict[str, Stages] = {
    "zero": grown(0),
    "one": grown(1),
    "three": grown(3),
    "ladder_late": ladder((1, 0.7), (6, 0.85)),
    "three_six": ladder((3, 1 / 6), (6, 1 / 3)),
}
_TIED: dict[str, Any] = {"model.share_embeddings_and_output_weights": True}  # as GPT-2


def _all(prefix: str = "", **fields: Any) -> dict[str, Variant]:
    """Finished full-size runs of several lengths, and runs that grow."""
    return {
        **{f"{prefix}{name}": Variant(length, fields=fields) for name, length in LENGTHS.items()},
        **{f"{prefix}{name}": Variant(1.0, stages, fields) for name, stages in GROWN.items()},
    }


STUDY = Study(
    folder=Path(__file__).resolve().parent,
    variants={**_all(), **_all("tied_", **_TIED)},
    figures={"growth": Figure(tuple(GROWN), tuple(LENGTHS))},
    corpus=(),
    vocabulary=("--train-tokenizer", "50257"),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
