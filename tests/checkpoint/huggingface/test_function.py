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


@pytest.fixture(scope="module")
def stored(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Path, torch.Tensor, np.ndarray]]:
    """By model: its directory, a text, and the logits of the text by ``transformers``."""
    root = tmp_path_factory.mktemp("models")
    found = {}
    for name in models.GPTS:
        model = models.build(name)
        path = models.save(model, root / name.replace(" ", "_"))
        found[name] = (path, models.tokens(model), models.logits(model).numpy())
    return found


@pytest.mark.parametrize("where", LAYOUTS)
def test_logits_agree_with_transformers(
    where: str, stored: dict[str, tuple[Path, torch.Tensor, np.ndarray]]
) -> None:
    world_size, parallel = LAYOUTS[where]
    inputs = {name: (path, text) for name, (path, text, _) in stored.items()}
    ranks = run_ranks(world_size, live.all_logits, inputs, parallel, timeout=120)
    for name, (_, _, expected) in stored.items():
        found = next(rank[name] for rank in ranks if rank[name] is not None)
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert error < 1e-5, f"{name}: relative error {error:.1e}"
