"""Tokens that share places: literal cases, and a direct formula over tokens one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_grow.model.bert.lengths import pooled_length
from megatron_grow.model.bert.pooling import places_of
from megatron_grow.model.layers.pooling import average


def _listed(places: torch.Tensor) -> list[list[int]]:
    """The tokens of each place of one sample."""
    return [row.nonzero().flatten().tolist() for row in places]


def _case(length: int, padded: int, masked: list[int], most: int) -> tuple[torch.Tensor, ...]:
    padding = torch.arange(length)[None] >= length - padded
    return padding, torch.tensor([masked + [0] * (most - len(masked))])


def test_masked_tokens_keep_places_and_are_left_out_of_the_others():
    """Neighbours are those that remain: 2 and 4 meet where 3 is masked, padding (9) is nowhere."""
    places = places_of(*_case(10, 1, [3, 7], 2), pool_size=2, length=pooled_length(10, 2, 2))
    assert _listed(places[0]) == [[0], [3], [7], [1, 2], [4, 5], [6, 8], []]


def test_a_sample_with_fewer_masked_tokens_fits():
    """Unused slots are taken by the places that follow."""
    places = places_of(*_case(8, 0, [5], 3), pool_size=3, length=pooled_length(8, 3, 3))
    assert _listed(places[0]) == [[0], [5], [1, 2, 3], [4, 6, 7], [], []]


def test_places_behind_the_last_are_empty():
    """A length that tensor-parallel ranks can share."""
    assert pooled_length(8, 2, 4) == 5
    assert pooled_length(8, 2, 4, multiple=4) == 8
    places = places_of(*_case(8, 0, [1, 2], 2), pool_size=4, length=8)
    assert _listed(places[0])[3:] == [[3, 4, 5, 6], [7], [], [], []]


@pytest.mark.parametrize(
    ("seq_length", "masked", "pool_size", "length"),
    [(512, 77, 1, 512), (512, 77, 2, 295), (512, 77, 4, 187), (512, 77, 600, 79), (4, 9, 2, 4)],
)
def test_lengths(seq_length: int, masked: int, pool_size: int, length: int):
    """1 + 77 + ceil(434 / k) places of 512 tokens; without pooling all of them."""
    assert pooled_length(seq_length, masked, pool_size) == length


@pytest.mark.parametrize("pool_size", [2, 3, 4, 7])
def test_any_sample_fits_and_averages_as_written_out(pool_size: int):
    """Random samples, full and short, against a loop over tokens in numpy."""
    draw = np.random.default_rng(pool_size)
    most, length = 6, 29
    places_at_most = pooled_length(length, most, pool_size)
    for _ in range(50):
        real = int(draw.integers(2, length + 1))
        count = int(draw.integers(0, min(most, real - 1) + 1))
        masked = sorted(draw.choice(np.arange(1, real), count, replace=False).tolist())
        x = draw.normal(size=(length, 1, 5))

        rest = [token for token in range(1, real) if token not in masked]
        groups = [[token] for token in (0, *masked)]
        groups += [rest[i : i + pool_size] for i in range(0, len(rest), pool_size)]
        expected = np.zeros((places_at_most, 1, 5))
        for place, tokens in enumerate(groups):
            expected[place] = x[tokens].mean(axis=0)

        case = _case(length, length - real, masked, most)
        places = places_of(*case, pool_size, places_at_most)
        torch.testing.assert_close(
            average(torch.from_numpy(x), places), torch.from_numpy(expected), rtol=0, atol=1e-12
        )


def test_samples_of_a_batch_are_apart():
    """Each has places of its own."""
    cases = [_case(9, 0, [2], 2), _case(9, 4, [1, 3], 2)]
    padding, masked = (torch.cat(parts) for parts in zip(*cases, strict=True))
    together = places_of(padding, masked, 2, 6)
    for number, case in enumerate(cases):
        assert torch.equal(together[number], places_of(*case, 2, 6)[0])
