"""Which layers share their parameters, as a run file says it."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_grow.config.model import ModelConfig
from megatron_grow.inputs.errors import UserError


@pytest.mark.parametrize(
    ("written", "sharing", "unique"),
    [
        ("1x4", (0, 0, 0, 0), 1),
        ("2x2", (0, 1, 0, 1), 2),
        ("2 x 2", (0, 1, 0, 1), 2),
        ([0, 0, 1, 1], (0, 0, 1, 1), 2),
        ([0, 1, 2, 0], (0, 1, 2, 0), 3),
        ("4x1", None, 4),
        ([0, 1, 2, 3], None, 4),
        (None, None, 4),
    ],
)
def test_the_unique_layer_of_each(written: Any, sharing: tuple | None, unique: int) -> None:
    model = ModelConfig(num_layers=4, layer_sharing=written)
    assert (model.sharing, model.num_unique_layers) == (sharing, unique)
    assert model.resolved.sharing == sharing


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("3x4", "3x4 is of 12 layers, but the model has num_layers=4; A times B must be that"),
        ([0, 0], "[0, 0] names 2 layers; the model has num_layers=4"),
        (
            [0, 0, 2, 1],
            "[0, 0, 2, 1]: layer 2 is unique layer 2; unique layers are numbered from 0 in order "
            "of first use, so it can be at most 1",
        ),
        (
            "all",
            "all must be AxB, a unit of A layers that is repeated B times, as in 1x4, or a list of "
            "the unique layer of each layer",
        ),
        ("0x4", None),
        ("1x", None),
        (4, "4 must be str or list"),
        ([0, -1, 0, 0], "[0, -1, 0, 0] must be str or list of which each entry is at least 0"),
    ],
)
def test_what_is_refused(written: Any, message: str | None) -> None:
    with pytest.raises(UserError) as caught:
        ModelConfig(num_layers=4, layer_sharing=written)
    assert str(caught.value).startswith(f"model.layer_sharing={message or written}")
