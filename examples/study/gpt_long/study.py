"""The study of GPT in long runs: over a thousand tokens for each parameter, as the published ones.

  python examples/study/gpt_long/study.py data books.jsonl books.valid.jsonl   corpora, a vocabulary
  python examples/study/gpt_long/study.py run full one zero --seed 1           all if none is named
  python examples/study/gpt_long/study.py table                                what has finished
  python examples/study/gpt_long/study.py figure growth runs/growth            a report of some

A run that has finished is left as it is, one that was stopped goes on. Several can run at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from driver import Figure, Study, Variant
from growths import grown, ladder

LENGTHS = {"full": 1.0, "full_10": 0.1, "full_20": 0.2, "full_40": 0.4}
SOURCES = {"zero": 0, "one": 1, "three": 3}
STUDY = Study(
    folder=Path(__file__).resolve().parent,
    variants={
        **{name: Variant(length) for name, length in LENGTHS.items()},
        **{name: Variant(1.0, grown(layers, at=0.8)) for name, layers in SOURCES.items()},
        "ladder_late": Variant(1.0, ladder((1, 0.4), (3, 0.7), (6, 0.85))),
        "three_six": Variant(1.0, ladder((3, 1 / 6), (6, 1 / 3))),
    },
    figures={
        "growth": Figure((*SOURCES, "ladder_late", "three_six"), tuple(LENGTHS)),
    },
    corpus=(),
    vocabulary=("--train-tokenizer", "512"),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
