"""The study of GPT, from no layer or few: each name is a run of a toy on one CPU core.

  python examples/study/gpt/study.py data books.jsonl books.valid.jsonl   corpora, a vocabulary
  python examples/study/gpt/study.py run full one zero --seed 1           all if none is named
  python examples/study/gpt/study.py table                                what has finished
  python examples/study/gpt/study.py figure timing runs/timing            a report of some

A run that has finished is left as it is, one that was stopped goes on. Several can run at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from driver import Figure, Study, Variant
from growths import grown, ladder, scaled, silent


def _everywhere(name: str, fields: dict[str, Any]) -> dict[str, Variant]:
    """The full size, from one and from none, with other fields of the run file."""
    return {
        f"{name}_full": Variant(fields=fields),
        f"{name}_one": Variant(1.0, grown(1), fields),
        f"{name}_zero": Variant(1.0, grown(0), fields),
        f"{name}_one_twin": Variant(f"{name}_one", fields=fields),
    }


_RESET: dict[str, Any] = {"grow": {"optimizer_state": "reset"}, "rewarmup_iters": 50}
_TIMES = {"10": 0.1, "25": 0.25, "50": 0.5, "88": 0.88}
VARIANTS = {
    # Finished full-size runs of several lengths.
    "full": Variant(),
    **{f"full_{steps}": Variant(steps / 4000) for steps in (500, 1000, 2000, 8000, 16000)},
    # Sources, grown at 0.75 of the steps; and at other times.
    **{name: Variant(1.0, grown(n)) for n, name in enumerate(("zero", "one", "two", "three"))},
    "six": Variant(1.0, grown(6)),
    **{
        f"{name}_{label}": Variant(1.0, grown(n, at=at))
        for n, name in enumerate(("zero", "one"))
        for label, at in _TIMES.items()
    },
    # How layers are made.
    "one_random": Variant(1.0, grown(1, "random")),
    "one_zero": Variant(1.0, grown(1, "zero")),
    "one_copying_zero": Variant(1.0, grown(1, "copying_zero")),
    "one_scaled": Variant(1.0, grown(1, scaled(1))),
    "three_scaled": Variant(1.0, grown(3, scaled(3))),
    "three_inter": Variant(1.0, grown(3, "copying_inter")),
    "three_last": Variant(1.0, grown(3, "copying_last")),
    "three_random": Variant(1.0, grown(3, "random")),
    "zero_silent": Variant(1.0, grown(0, silent())),
    # The optimizer's state, and what is new.
    "one_carry_old": Variant(1.0, grown(1, grow={"optimizer_state": "carry_old"})),
    "one_reset": Variant(1.0, grown(1, **_RESET)),
    "zero_reset": Variant(1.0, grown(0, **_RESET)),
    "one_warm_up_new": Variant(1.0, grown(1, methods=[{"name": "warm_up_new", "iters": 100}])),
    "one_fast": Variant(1.0, grown(1, lr_multiplier=2.0)),
    "zero_fast": Variant(1.0, grown(0, lr_multiplier=2.0)),
    # Several growths.
    "zero_two": Variant(1.0, ladder((0, 0.6), (2, 0.75), depth="random")),
    "one_three": Variant(1.0, ladder((1, 0.5), (3, 0.75))),
    "three_six": Variant(1.0, ladder((3, 1 / 6), (6, 1 / 3))),
    "ladder_early": Variant(1.0, ladder((1, 1 / 8), (3, 1 / 4), (6, 1 / 2))),
    "ladder": Variant(1.0, ladder((1, 1 / 4), (3, 1 / 2), (6, 3 / 4))),
    "ladder_late": Variant(1.0, ladder((1, 0.4), (3, 0.7), (6, 0.85))),
    "three_six_late": Variant(1.0, ladder((3, 0.5), (6, 0.75))),
}
# The same elsewhere.
for _name, _fields in {
    "adam": {"optimizer.optimizer": "adam"},
    "nsgd": {"optimizer.optimizer": "muon_nsgd", "optimizer.lr": 0.02},
    "tied": {"model.share_embeddings_and_output_weights": True},
    "small_init": {"model.init_method_std": 0.02},
    "spectral": {"parametrization.name": "spectral"},
    "cosine": {"schedule.lr_decay_style": "cosine"},
    "slow": {"optimizer.lr": 2.0e-3, "optimizer.muon_lr": 0.01},
    "fast": {"optimizer.lr": 8.0e-3, "optimizer.muon_lr": 0.04},
}.items():
    VARIANTS |= _everywhere(_name, _fields)
VARIANTS["cosine_one_50"] = Variant(1.0, grown(1, at=0.5), {"schedule.lr_decay_style": "cosine"})
VARIANTS |= {
    f"{name}_twin": Variant(name) for name in ("zero", "one", "three", "six", "one_25", "three_six")
}

LENGTHS = ("full_500", "full_1000", "full_2000", "full")
STUDY = Study(
    folder=Path(__file__).resolve().parent,
    variants=VARIANTS,
    figures={
        "sources": Figure(("zero", "one", "three", "six"), LENGTHS),
        "ladders": Figure(
            ("one_three", "ladder_early", "ladder", "ladder_late", "three_six", "three_six_late"),
            LENGTHS,
        ),
        "timing": Figure(
            tuple(f"{name}{at}" for name in ("zero", "one") for at in ("_25", "_50", "", "_88")),
            LENGTHS,
        ),
        "operators": Figure(
            ("one", "one_random", "one_zero", "one_copying_zero", "one_scaled"), LENGTHS
        ),
    },
    corpus=(),
    vocabulary=("--train-tokenizer", "1024"),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
