"""The tables against the models of ``transformers``: names, shapes, and nothing twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_grow.checkpoint.huggingface.config import to_model
from megatron_grow.checkpoint.huggingface.names import copies, regions
from megatron_grow.model.architectures import all_families, logical_tensors
from megatron_grow.state.boxes import slices
from tests.checkpoint.huggingface import models


@pytest.mark.parametrize("name", models.MODELS)
def test_each_weight_is_in_one_place(name: str) -> None:
    theirs = models.build(name)
    config = theirs.config.to_dict()
    weights = dict(theirs.named_parameters())  # a tied head once, as the file has it
    ours = to_model(config, Path("config.json"), weights)
    family = all_families()[config["model_type"]]
    found, again = list(regions(family, ours)), copies(family, ours)
    assert {region.name: region.shape for region in found} == {
        name: tuple(weight.shape) for name, weight in weights.items()
    }
    assert len(found) == len({region.name for region in found})
    for key, tensor in logical_tensors(ours).items():
        count = np.zeros(tensor.shape, int)
        for region in found:
            if region.key == key and region.name not in again:
                count[slices(region.box)] += 1
        assert (count == 1).all(), key
