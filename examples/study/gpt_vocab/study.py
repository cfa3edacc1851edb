"""The study of GPT with few tokens and with many: what is there for a run from no layer to learn?

  s=examples/study/gpt_vocab/study.py
  python $s data books.jsonl books.valid.jsonl   corpora, a vocabulary of 8,192
  python $s run full half zero --seed 1          all if none is named
  python $s table                                what has finished
  python $s laws                                 what it depends on
  python $s figure sources runs/vocab            a report of some

`few` and `some` read the corpora of the studies gpt_long (512 tokens) and gpt (1,024). A run that
has finished is left as it is, one that was stopped goes on. Several can run at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from driver import Figure, Study, Variant
from growths import grown
from laws import Law

SOURCES = {"zero": 0, "one": 1, "three": 3}


def _of(study: str, tokens: int) -> dict[str, Any]:
    """The vocabulary and the corpora of another study."""
    return {
        "model.vocab_size": tokens,
        "data.train_data_path": [f"data/study_{study}_text_document"],
        "data.valid_data_path": [f"data/study_{study}_valid_text_document"],
        "data.tokenizer": f"data/study_{study}-tokenizer.json",
    }


VARIANTS = {
    "full": Variant(),
    "half": Variant(0.5),
    **{name: Variant(1.0, grown(layers)) for name, layers in SOURCES.items()},
    "full_6000": Variant(3.0),
    "zero_6000": Variant(3.0, grown(0)),
}
for _name, _fields in {"few": _of("gpt_long", 512), "some": _of("gpt", 1024)}.items():
    VARIANTS |= {
        f"{_name}_full": Variant(fields=_fields),
        f"{_name}_half": Variant(0.5, fields=_fields),
        **{
            f"{_name}_{source}": Variant(1.0, grown(layers), _fields)
            for source, layers in SOURCES.items()
        },
    }
STUDY = Study(
    folder=Path(__file__).resolve().parent,
    variants=VARIANTS,
    figures={"sources": Figure((*SOURCES, "zero_6000"), ("half", "full", "full_6000"))},
    corpus=(),
    vocabulary=("--train-tokenizer", "8192"),
    laws=(Law("tokens", {512: "few_{}", 1024: "some_{}", 8192: "{}"}, tuple(SOURCES)),),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
