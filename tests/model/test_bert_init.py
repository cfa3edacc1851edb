"""What the entries of a BERT begin as."""

from __future__ import annotations

from math import sqrt

import pytest

from megatron_grow.model.architectures import logical_tensors
from megatron_grow.state.tensors import Constant, Normal
from tests.bert import bert


@pytest.mark.parametrize("norms", ["post", "pre"])
def test_outputs_of_branches_are_scaled_by_the_runs_depth_in_pre_norm_alone(norms: str) -> None:
    outputs = {
        f"encoder.layers.{part}" for part in ("self_attention.linear_proj", "mlp.linear_fc2")
    }
    for key, tensor in logical_tensors(bert(norm_position=norms), target_depth=24).items():
        name, kind = key.rsplit(".", 1)
        if tensor.norm:
            expected: Constant | Normal = Constant(1.0 if tensor.norm == "gain" else 0.0)
        elif kind == "bias":
            expected = Constant(0.0)
        else:
            scaled = norms == "pre" and name in outputs
            expected = Normal(pytest.approx(0.02 / sqrt(2 * 24) if scaled else 0.02))
        assert tensor.init == expected, key
