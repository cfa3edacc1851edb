"""The list of corpora in a run file."""

from __future__ import annotations

import pytest

from megatron_grow.data.blend import Blend, parse_blend
from megatron_grow.inputs.errors import UserError


@pytest.mark.parametrize(
    ("paths", "blend"),
    [
        (["a"], Blend(["a"], None)),
        (["a", "b"], Blend(["a", "b"], None)),
        ([0.3, "a", 0.7, "b"], Blend(["a", "b"], [0.3, 0.7])),
        (["30", "a", 70, "b"], Blend(["a", "b"], [30.0, 70.0])),
        ([1, "a"], Blend(["a"], [1.0])),
    ],
)
def test_prefixes_with_and_without_weights(paths, blend):
    assert parse_blend(paths, "data.train_data_path") == blend


@pytest.mark.parametrize(
    "paths",
    [[0.3, "a", "b"], ["a", 0.3], [0.3], [0.3, 0.7, "a", "b"], [0.0, "a"], [-1, "a"], ["nan", "a"]],
)
def test_malformed_blends(paths):
    with pytest.raises(UserError, match=r"data\.train_data_path=\["):
        parse_blend(paths, "data.train_data_path")
