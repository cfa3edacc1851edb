"""The study of GPT, from no layer or few: each name is a run of a toy on one CPU core.

  python examples/study/gpt/study.py data books.jsonl books.valid.jsonl   corpora, a vocabulary
  python examples/study/gpt/study.py run full one zero --seed 1           all if none is named
  python examples/study/gpt/study.py table                                what has finished
  python examples/study/gpt/study.py laws                                 what it depends on
  python examples/study/gpt/study.py figure timing runs/timing            a report of some

A run that has finished is left as it is, one that was stopped goes on. Several can run at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from driver import Figure, Stages, Study, Variant
from growths import grown, grown_from, ladder, scaled, silent
from laws import Law


def _short(stages: Stages = (), **fields: Any) -> Variant:
    """A run of half of the steps, with what compares many things with each other."""
    return Variant(0.5, list(stages), fields)


def _elsewhere(name: str, **fields: Any) -> dict[str, Variant]:
    """Sources with other fields of the run file, beside two lengths of the full size."""
    return {
        f"{name}_full": _short(**fields),
        f"{name}_half": Variant(0.25, fields=fields),
        **{f"{name}_{source}": _short(grown(n), **fields) for source, n in SOURCES.items()},
    }


def _wide(width: int) -> dict[str, Any]:
    """Another width, its heads as wide, weights of the same spectral norm."""
    return {
        "model.hidden_size": width,
        "model.num_attention_heads": width // 12,
        "model.init_method_std": round(0.08 * (48 / width) ** 0.5, 4),
    }


_SLENDER = {**_wide(24), "model.num_layers": 24}
_LADDER = ladder((1, 0.65), (6, 0.8))
_LATE = ladder((1, 0.7), (6, 0.85))
SOURCES = {"zero": 0, "one": 1, "three": 3}
_RESET: dict[str, Any] = {"grow": {"optimizer_state": "reset"}, "rewarmup_iters": 50}
_TIMES = {"25": 0.25, "50": 0.5, "88": 0.88}  # the rate falls from 0.9 on
_COSINE = {"schedule.lr_decay_style": "cosine"}
_ADAM = {"optimizer.optimizer": "adam"}
_TIED = {"model.share_embeddings_and_output_weights": True}
_SMALL = {"model.init_method_std": 0.02}
_SHALLOW = {"model.num_layers": 6}
_NARROW = {"hidden_size": 24, "num_attention_heads": 2}
_NOISY = {"operator": "hypercloning", "snr_db": 10}
# Rates and init as of the narrow model, on which they act as they do under `standard`.
_MUP = {
    "parametrization.name": "mup",
    "parametrization.base": _NARROW,
    "model.init_method_std": _wide(24)["model.init_method_std"],
}
VARIANTS = {
    # Finished full-size runs of several lengths.
    "full": Variant(),
    **{f"full_{steps}": Variant(steps / 4000) for steps in (500, 1000, 2000, 8000)},
    # Sources, grown at 0.75 of the steps.
    **{name: Variant(1.0, grown(n)) for name, n in SOURCES.items()},
    "six": Variant(1.0, grown(6)),
    **{
        f"{name}_{steps}": Variant(steps / 4000, grown(n))
        for name, n in SOURCES.items()
        for steps in (1000, 2000, 8000)
    },
    # Several growths.
    "one_three": Variant(1.0, ladder((1, 0.5), (3, 0.75))),
    "three_six": Variant(1.0, ladder((3, 1 / 6), (6, 1 / 3))),
    "ladder_early": Variant(1.0, ladder((1, 1 / 8), (3, 1 / 4), (6, 1 / 2))),
    "ladder": Variant(1.0, ladder((1, 1 / 4), (3, 1 / 2), (6, 3 / 4))),
    "ladder_late": Variant(1.0, ladder((1, 0.4), (3, 0.7), (6, 0.85))),
    "three_six_late": Variant(1.0, ladder((3, 0.5), (6, 0.75))),
    "three_six_2000": _short(ladder((3, 1 / 6), (6, 1 / 3))),
    "ladder_late_2000": _short(ladder((1, 0.4), (3, 0.7), (6, 0.85))),
    "zero_two_2000": _short(ladder((0, 0.6), (2, 0.75), depth="random")),
    "two_2000": _short(grown(2)),
    # How layers are made; all of it beside `one`, and at half of the steps beside `three_2000`.
    "one_random": Variant(1.0, grown(1, "random")),
    "one_zero": Variant(1.0, grown(1, "zero")),
    "one_copying_zero": Variant(1.0, grown(1, "copying_zero")),
    "three_random": _short(grown(3, "random")),
    "three_zero": _short(grown(3, "zero")),
    "three_copying_zero": _short(grown(3, "copying_zero")),
    "three_inter": _short(grown(3, "copying_inter")),
    "three_last": _short(grown(3, "copying_last")),
    "three_scaled": _short(grown(3, scaled(3))),
    "zero_silent": _short(grown(0, silent())),
    # When.
    **{
        f"{name}_{label}": _short(grown(n, at=at))
        for name, n in SOURCES.items()
        for label, at in _TIMES.items()
    },
    # The optimizer's state, and what is new.
    "one_carry_old": _short(grown(1, grow={"optimizer_state": "carry_old"})),
    "one_reset": _short(grown(1, **_RESET)),
    "zero_reset": _short(grown(0, **_RESET)),
    "one_warm_up_new": _short(grown(1, methods=[{"name": "warm_up_new", "iters": 100}])),
    "one_faster": _short(grown(1, lr_multiplier=2.0)),
    # G_stack, by its law about early, with a fresh optimizer and a warm-up; other axes.
    "g_stack": _short(grown(3, {"operator": "copying_stack"}, at=0.1, **_RESET)),
    "g_random": _short(grown(3, "random", at=0.1, **_RESET)),
    "width": _short(grown_from(_NARROW, {"recipe": "lemon"}, at=0.5)),
    "width_tiled": _short(grown_from(_NARROW, {"recipe": "hypercloning"}, at=0.5)),
    "width_noisy": _short(
        grown_from(_NARROW, {"width": _NOISY, "heads": _NOISY, "ffn": _NOISY}, at=0.5)
    ),
    "compound": _short(
        grown_from({"num_layers": 6, **_NARROW}, {"recipe": "bert2bert"}, at=0.5, seq_length=32)
    ),
    # Cosine where mixing is said to fail with it, and not with WSD.
    "cosine_one_50": _short(grown(1, at=0.5), **_COSINE),
    "cosine_three_50": _short(grown(3, at=0.5), **_COSINE),
    # The same elsewhere.
    **_elsewhere("adam", **_ADAM),
    # Where grown layers were seen to die: AdamW, a tied head, small weights, and a look inside.
    **_elsewhere("dying", **_ADAM, **_TIED, **_SMALL, **{"train.layers_interval": 100}),
    **_elsewhere("nsgd", **{"optimizer.optimizer": "muon_nsgd", "optimizer.lr": 0.02}),
    **_elsewhere("tied", **_TIED),
    **_elsewhere("small_init", **_SMALL),
    **_elsewhere("spectral", **{"parametrization.name": "spectral"}),
    **_elsewhere("mup", **_MUP),
    **_elsewhere("cosine", **_COSINE),
    # What head starts and losses depend on: other rates, widths and depths.
    **_elsewhere("slow", **{"optimizer.lr": 2.0e-3, "optimizer.muon_lr": 0.01}),
    **_elsewhere("fast", **{"optimizer.lr": 8.0e-3, "optimizer.muon_lr": 0.04}),
    **_elsewhere("narrow", **_wide(24)),
    **_elsewhere("wide", **_wide(96)),
    **_elsewhere("shallow", **_SHALLOW),
    **_elsewhere("deep", **{"model.num_layers": 24}),
    **_elsewhere("slender", **_SLENDER),
    **_elsewhere("slender_adam", **_ADAM, **_SLENDER),
    "slender_one_80": _short(grown(1, at=0.8), **_SLENDER),
    "slender_adam_one_80": _short(grown(1, at=0.8), **_ADAM, **_SLENDER),
    "slender_ladder": _short(_LADDER, **_SLENDER),
    "slender_adam_ladder": _short(_LADDER, **_ADAM, **_SLENDER),
    "slender_ladder_late": _short(_LATE, **_SLENDER),
    "slender_adam_ladder_late": _short(_LATE, **_ADAM, **_SLENDER),
    "slender_adam_full_8000": Variant(2, fields={**_ADAM, **_SLENDER}),
    "slender_adam_ladder_8000": Variant(2, _LADDER, {**_ADAM, **_SLENDER}),
    "slender_adam_ladder_late_8000": Variant(2, _LATE, {**_ADAM, **_SLENDER}),
    # Very many steps: is mixing then over before the rate falls?
    "shallow_full_60000": Variant(15, fields=_SHALLOW),
    "shallow_full_20000": Variant(5, fields=_SHALLOW),
    "shallow_one_60000": Variant(15, grown(1, at=0.8), _SHALLOW),
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
            tuple(f"{name}_{at}" for name in ("zero", "one") for at in (*_TIMES, "2000")),
            LENGTHS,
        ),
        "operators": Figure(
            (
                "three_2000",
                *(f"three_{name}" for name in ("random", "zero", "copying_zero", "inter", "last")),
                "three_scaled",
            ),
            LENGTHS,
        ),
        "slender": Figure(
            tuple(f"slender_adam_{name}" for name in ("zero", "one", "ladder", "ladder_late")),
            ("slender_adam_half", "slender_adam_full"),
        ),
        "axes": Figure(
            ("three_2000", "width", "width_tiled", "width_noisy", "compound", "g_stack"), LENGTHS
        ),
    },
    corpus=(),
    vocabulary=("--train-tokenizer", "1024"),
    laws=tuple(
        Law(over, runs, tuple(SOURCES))
        for over, runs in {
            "steps": {1000: "{}_1000", 2000: "{}_2000", 4000: "{}", 8000: "{}_8000"},
            "width": {24: "narrow_{}", 48: "{}_2000", 96: "wide_{}"},
            "layers": {6: "shallow_{}", 12: "{}_2000", 24: "deep_{}"},
            "rate of Muon": {0.01: "slow_{}", 0.02: "{}_2000", 0.04: "fast_{}"},
        }.items()
    ),
)

if __name__ == "__main__":
    STUDY.main(__doc__)
