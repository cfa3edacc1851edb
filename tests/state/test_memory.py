"""Memory that glibc finds again."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from megatron_grow.state.memory import cast, contiguous, empty

PROGRAM = """
import random, resource
import torch
from megatron_grow.parallel.malloc import keep_freed_memory
from megatron_grow.state.memory import empty

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

keep_freed_memory()
chance, before, held = random.Random(1), peak(), []
for _ in range(300):
    held.append(empty((chance.choice((32, 24, 20, 12)) << 20,), torch.uint8))
    held[-1].fill_(1)
    if len(held) > 4:
        del held[chance.randrange(4)]
print(peak() - before)
"""


def test_blocks_that_come_and_go_do_not_add_up() -> None:
    """Five at a time of at most 32 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True
    )
    assert float(done.stdout) < 2 * 5 * 32


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3,), (2, 0, 5), (4, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_a_tensor_like_any_other(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    found, expected = empty(shape, dtype), torch.empty(shape, dtype=dtype)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.is_contiguous() and found.view(-1).view(torch.uint8).is_contiguous()
    assert torch.equal(found.fill_(3), expected.fill_(3))


def test_copies() -> None:
    values = torch.randn(5, 7)
    assert contiguous(values) is values
    assert contiguous(values.t()).is_contiguous() and torch.equal(
        contiguous(values.t()), values.t()
    )
    assert cast(values, torch.float32) is values
    assert torch.equal(cast(values.t(), torch.bfloat16), values.t().bfloat16())
