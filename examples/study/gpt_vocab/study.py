"""The study of GPT with more tokens: what a run from no layer gains where most of them are rare.

  python examples/study/gpt_vocab/study.py data books.jsonl books.valid.jsonl  corpora, vocabulary
  python examples/study/gpt_vocab/study.py run full half zero --seed 1          all if none is named
  python examples/study/gpt_vocab/study.py table                                what has finished
  python examples/study/gpt_vocab/study.py figure sources runs/vocab            a report of some

A run that has finished is left as it is, one that was stopped goes on. Several can run at once.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from driver import Figure, Study, Variant
from growths import grown

SOURCES = {"zero": 0, "one": 1, "three": 3}
STUDY = Study(
    folder=Path(__file__).resolve().parent,
    variants={
        "full": Variant(),
        "half": Variant(0.5),
        "quarter": Variant(0.25),
        **{name: Variant(1.0, grown(layers)) for name, layers in SOURCES.items()},
    },
    figures={"sources": Figure(tuple(SOURCES), ("quarter", "half", "full"))},
    corpus=(),
    vocabulary=("--train-tokenizer", "8192"),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
