"""The study of BERT, shared or small at first: each name is a run of a toy on one CPU core.

  python examples/study/bert/study.py data books.jsonl books.valid.jsonl   corpora, a vocabulary
  python examples/study/bert/study.py run full swe_f compound --seed 1     all if none is named
  python examples/study/bert/study.py table                                what has finished
  python examples/study/bert/study.py figure growth runs/growth            a report of some

A run that has finished is left as it is, one that was stopped goes on. Several can run at once.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from driver import Figure, Stages, Study, Variant


def _swe(
    sharing: str, until: Any = 0.1, first: dict[str, Any] | None = None, **then: Any
) -> Stages:
    """Layers that train as one, then not."""
    return [
        {"until": until, "model": {"layer_sharing": sharing}, **(first or {})},
        {"grow": {"depth": "unshare"}, **then},
    ]


def _stacked(*models: dict[str, Any], **growth: Any) -> Stages:
    """Three stages of a sixth, a sixth and two thirds of the steps, the last at full size."""
    grow = {"grow": {"recipe": "compound_grow", **growth}, "rewarmup_iters": 100}
    first, second = models
    return [{"until": 1 / 6, "model": first}, {"until": 1 / 3, "model": second, **grow}, grow]


_SHALLOW = {"num_layers": 2}, {"num_layers": 4}
_NARROW = {"ffn_hidden_size": 64}, {"ffn_hidden_size": 128}
_SHORT = {"options": {"pool_size": 2}}, {"options": {"pool_size": 2}}
_COMPOUND = tuple({**a, **b, **c} for a, b, c in zip(_SHALLOW, _NARROW, _SHORT, strict=True))
_RESET: dict[str, Any] = {
    "grow": {"depth": "unshare", "optimizer_state": "reset"},
    "rewarmup_iters": 100,
}
_MEASURED = {"every": 60, "rho": 0.5}
_DEEP = {"model.num_layers": 24}
VARIANTS = {
    "full": Variant(),
    # Sharing, then unsharing, in half of the steps.
    "half": Variant(0.5),
    "swe_f": Variant(0.5, _swe("1x8")),
    "swe_a": Variant(
        0.5,
        _swe(
            "1x8",
            {"at_most": 0.5},
            {"methods": [{"name": "end_sharing", "times": 3, **_MEASURED}]},
        ),
    ),
    "swe_m": Variant(
        0.5, [{"methods": [{"name": "split_sharing", "layer_sharing": "1x8", **_MEASURED}]}]
    ),
    "swe_long": Variant(0.5, _swe("1x8", 0.4)),
    "swe_reset": Variant(0.5, _swe("1x8", **_RESET)),
    "swe_gentle": Variant(0.5, _swe("1x8", first={"lr_multiplier": 0.25})),
    "swe_2x4": Variant(0.5, _swe("2x4")),
    "swe_4x2": Variant(0.5, _swe("4x2")),
    # Growth in all of the steps, and finished full-size runs of equal FLOPs.
    "depth": Variant(1.0, _stacked(*_SHALLOW)),
    "ffn": Variant(1.0, _stacked(*_NARROW)),
    "length": Variant(1.0, _stacked(*_SHORT)),
    "compound": Variant(1.0, _stacked(*_COMPOUND)),
    "compound_carry": Variant(1.0, _stacked(*_COMPOUND, optimizer_state="carry")),
    "depth_twin": Variant("depth"),
    "ffn_twin": Variant("ffn"),
    "length_twin": Variant("length"),
    "compound_twin": Variant("compound"),
    # Does sharing help where depth makes training hard? Three times the layers, a third of the
    # steps.
    "deep": Variant(1 / 3, fields=_DEEP),
    "deep_swe_f": Variant(1 / 3, _swe("1x24"), _DEEP),
    "deep_swe_gentle": Variant(1 / 3, _swe("1x24", first={"lr_multiplier": 0.1}, **_RESET), _DEEP),
}
# Is the rate a good one?
VARIANTS |= {
    f"{name}_{label}": replace(VARIANTS[name], fields={"optimizer.lr": rate})
    for label, rate, names in (
        ("slow", 1.0e-3, ("full", "half", "swe_f")),
        ("fast", 3.0e-3, ("half",)),
    )
    for name in names
}

_SIZES = ("half", "full", "depth_twin", "ffn_twin", "length_twin", "compound_twin")
_SHARED = ("swe_f", "swe_a", "swe_m", "swe_long", "swe_reset", "swe_gentle", "swe_2x4", "swe_4x2")
_GROWN = ("depth", "ffn", "length", "compound", "compound_carry")
STUDY = Study(
    folder=Path(__file__).resolve().parent,
    variants=VARIANTS,
    figures={
        "sharing": Figure(_SHARED, ("half", "full")),
        "growth": Figure(_GROWN, _SIZES),
        "deep": Figure(("deep_swe_f", "deep_swe_gentle"), ("deep",)),
    },
    corpus=("--split-sentences",),
    vocabulary=("--train-tokenizer", "512", "--tokenizer-model", "wordpiece"),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
