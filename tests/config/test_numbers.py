"""Sets of numbers as people write them."""

from __future__ import annotations

import pytest

from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.numbers import numbers, spans


@pytest.mark.parametrize(
    ("text", "found"),
    [("all", [0, 1, 2, 3]), ("2", [2]), ("0,2-3", [0, 2, 3]), (" 3 , 1 - 2", [1, 2, 3])],
)
def test_numbers(text: str, found: list[int]) -> None:
    assert numbers(text, 4, "--ranks") == found


@pytest.mark.parametrize("text", ["", "0,", "4", "0-4", "2-1", "-1", "a", "1.5", "٣"])
def test_what_names_no_numbers(text: str) -> None:
    with pytest.raises(UserError, match=r"^--ranks="):
        numbers(text, 4, "--ranks")


def test_spans() -> None:
    assert spans([5, 0, 1, 2, 7, 8]) == "0-2, 5, 7-8"
