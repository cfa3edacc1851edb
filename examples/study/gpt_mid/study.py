"""The study of GPT at a larger width, on one GPU.

  python examples/study/gpt_mid/study.py data books.jsonl books.valid.jsonl   corpora, a vocabulary
  python examples/study/gpt_mid/study.py run full one zero --seed 1           all if none is named
  python examples/study/gpt_mid/study.py table                                what has finished
  python examples/study/gpt_mid/study.py figure growth runs/growth            a report of some

A run that has finished is left as it is, one that was stopped goes on. Several can run at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from driver import Figure, Study, Variant
from growths import grown, ladder

SOURCES = {"zero": 0, "one": 1, "three": 3, "six": 6}
LENGTHS = {"full": 1.0, "full_300": 1 / 8, "full_600": 1 / 4, "full_1200": 1 / 2}
STUDY = Study(
    folder=Path(__file__).resolve().parent,
    variants={
        **{name: Variant(length) for name, length in LENGTHS.items()},
        **{name: Variant(1.0, grown(layers)) for name, layers in SOURCES.items()},
        "three_six": Variant(1.0, ladder((3, 1 / 6), (6, 1 / 3))),
        "ladder_early": Variant(1.0, ladder((1, 1 / 8), (3, 1 / 4), (6, 1 / 2))),
        "ladder": Variant(1.0, ladder((1, 1 / 4), (3, 1 / 2), (6, 3 / 4))),
        "three_six_late": Variant(1.0, ladder((3, 0.5), (6, 0.75))),
    },
    figures={
        "growth": Figure(
            (*SOURCES, "three_six", "ladder_early", "ladder", "three_six_late"), tuple(LENGTHS)
        ),
    },
    corpus=(),
    vocabulary=("--train-tokenizer", "1024"),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
