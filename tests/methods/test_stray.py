"""Methods that ask for what cannot be: one line on all ranks, no hang."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_grow.config.exit_codes import ExitCode
from tests.train.command import launch

STRAY = "tests.methods.stray:Stray"
TOLD = {
    "skip_update": "stages[0].methods: in step 1 some ranks asked for skip_update and others did",
    "stop": "stages[0].methods: in step 1 some ranks asked for stop and others did not",
    "": "stages[0].methods[0]: its state_dict() is not of JSON's types (Object of type Tensor is",
}


@pytest.mark.parametrize("what", TOLD)
def test_one_line(workplace: Path, what: str) -> None:
    stages = json.dumps([{"methods": [{"name": STRAY, "what": what}]}])
    code, _, errors = launch(workplace, f"stray_{what}", "--stages", stages)
    assert code == ExitCode.MISTAKE
    assert errors.startswith(f"error: {TOLD[what]}") and errors.count("\n") == 1
