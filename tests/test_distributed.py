"""What ranks answer arrives; a rank that does not answer fails the call at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.distributed import run_ranks


def test_tensors_arrive() -> None:
    first, second = run_ranks(2, _tensor)
    assert torch.equal(first, torch.tensor([0, 1, 2], dtype=torch.bfloat16))
    assert torch.equal(second, torch.tensor([1, 2, 3], dtype=torch.bfloat16))


def _tensor() -> torch.Tensor:
    return torch.arange(3, dtype=torch.bfloat16) + int(os.environ["RANK"])


def _unpicklable() -> Any:
    return lambda: None


def _raises() -> None:
    raise ValueError("of rank 1")


def _leaves() -> None:
    os._exit(0)


def _is_killed() -> None:
    os.kill(os.getpid(), 9)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (_unpicklable, "rank 1 failed:\n.*Can't (pickle|get) local object"),
        (_raises, "rank 1 failed:\n.*ValueError: of rank 1"),
        (_leaves, "rank 1 left without an answer, exit code 0"),
        (_is_killed, "rank 1 left without an answer, exit code -9"),
    ],
)
def test_a_rank_without_a_result(function: Callable[[], Any], said: str) -> None:
    with pytest.raises(AssertionError, match=f"(?s){said}"):
        run_ranks(2, _on_rank_1, function, timeout=60)


def _on_rank_1(function: Callable[[], Any]) -> Any:
    return function() if os.environ["RANK"] == "1" else None
