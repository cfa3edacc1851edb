"""Does a rate that is good for a narrow model stay good for a wide one? With muP, and without.

  python examples/study/transfer/study.py data books.jsonl books.valid.jsonl   corpora, a vocabulary
  python examples/study/transfer/study.py run                                  widths by rates
  python examples/study/transfer/study.py table                                what has finished

Some minutes of one CPU core for a seed. The best rate of each width is that of the base under muP.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from driver import Study, Variant

_BASE = 32
WIDTHS, RATES = (_BASE, 64, 128), (1.0e-3, 4.0e-3, 1.6e-2, 6.4e-2)


def _fields(width: int, rate: float, rule: str) -> dict[str, Any]:
    fields = {"model.hidden_size": width, "optimizer.lr": rate, "parametrization.name": rule}
    return fields if rule == "standard" else fields | {"parametrization.base.hidden_size": _BASE}


STUDY = Study(
    folder=Path(__file__).resolve().parent,
    variants={
        f"{rule}_{width}_lr{rate:g}": Variant(fields=_fields(width, rate, rule))
        for rule in ("standard", "mup")
        for width in WIDTHS
        for rate in RATES
    },
    figures={},
    corpus=("--append-eod",),
    vocabulary=("--train-tokenizer", "1024"),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
