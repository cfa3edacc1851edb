"""What an imported model computes, against ``transformers``, on several layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoint.huggingface import live, models
from tests.distributed import run_ranks
from tests.toy import layout

LAYOUTS = {"TP1": (1, layout()), "TP2": (2, layout(tp=2)), "PP2": (2, layout(pp=2))}


Stored = dict[str, tuple[Path, live.Inputs, list[np.ndarray]]]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """By model: its directory, a text, and what `transformers` makes of the text."""
    root = tmp_path_factory.mktemp("models")
    found = {}
    for name in models.MODELS:
        model = models.build(name)
        path = models.save(model, root / name.replace(" ", "_"))
        expected = [logits.numpy() for logits in models.outputs(model)]
        found[name] = (path, models.inputs(model), expected)
    return found


@pytest.mark.parametrize("where", LAYOUTS)
def test_logits_agree_with_transformers(where: str, stored: Stored) -> None:
    world_size, parallel = LAYOUTS[where]
    gpts, berts = (
        {name: stored[name][:2] for name in names} for names in (models.GPTS, models.BERTS)
    )
    ranks = run_ranks(world_size, live.all_logits, gpts, berts, parallel)
    for name, (_, text, heads) in stored.items():
        ours = next(rank[name] for rank in ranks if rank[name] is not None)
        # What is said of padding differs, where the library does not count its positions.
        real = text.get("attention_mask", torch.ones_like(text["input_ids"])).numpy() > 0
        for found, expected in zip(ours, heads, strict=True):
            apart = np.abs(found - expected)
            error = (apart[real] if found.ndim == 3 else apart).max() / np.abs(expected).max()
            assert error < 1e-5, f"{name}: relative error {error:.1e}"
