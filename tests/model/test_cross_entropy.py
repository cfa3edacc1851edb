"""The loss against torch's in fp64: values, gradients, precision, and what it must not hide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional

from megatron_grow.model.layers import cross_entropy
from megatron_grow.model.layers.cross_entropy import vocab_parallel_cross_entropy
from tests.cost.storages import Storages
from tests.distributed import run_ranks

SEQUENCE, BATCH, VOCAB = 5, 3, 64


def _inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (sequence, batch, vocabulary), labels and the loss's upstream gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(SEQUENCE, BATCH, VOCAB, generator=generator)
    logits[0, 0] += 300.0  # exp overflows unless the maximum is taken off
    labels = torch.randint(VOCAB, (SEQUENCE, BATCH), generator=generator)
    upstream = torch.rand(SEQUENCE, BATCH, generator=generator)
    upstream[1, 1] = 0.0  # a masked token
    return logits.to(dtype), labels, upstream


def test_one_block_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 rows in fp32, four at a time; and what a row is reduced to."""
    monkeypatch.setitem(cross_entropy._BLOCK_ELEMENTS, "cpu", 4 * 1000)
    rows = torch.zeros(64, 1000, dtype=torch.bfloat16)
    with Storages() as counted:
        cross_entropy.softmax_(rows)
    assert counted.peak <= 4 * (4 * 1000 + 2 * 64)


def _reference(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    logits, labels, upstream = _inputs(dtype)
    exact = logits.double().requires_grad_()
    losses = functional.cross_entropy(exact.flatten(0, 1), labels.flatten(), reduction="none")
    losses.backward(upstream.flatten().double())
    return losses.detach().view_as(labels), exact.grad


def _ours(dtype: torch.dtype, rows_in_block: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses, and this rank's part of the logits' gradient, exactly as fp64."""
    logits, labels, upstream = _inputs(dtype)
    part = VOCAB // dist.get_world_size()
    mine = logits[..., dist.get_rank() * part :][..., :part].contiguous().requires_grad_()
    cross_entropy._BLOCK_ELEMENTS["cpu"] = rows_in_block * part
    losses, _ = vocab_parallel_cross_entropy(mine * 1, labels, dist.group.WORLD, VOCAB)
    losses.backward(upstream)
    assert losses.dtype is torch.float32
    assert mine.grad.dtype is dtype
    return losses.detach().double().numpy(), mine.grad.double().numpy()


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("rows_in_block", [2, 100])
@pytest.mark.parametrize(
    ("dtype", "loss_error", "gradient_error"),
    # A bf16 number has 8 bits. Rounded once, or twice where parts are rescaled, and once by
    # the upstream gradient.
    [(torch.float32, 1e-5, 1e-5), (torch.bfloat16, 1e-5, 3 * 2**-8)],
)
def test_losses_and_gradients(
    world_size: int,
    rows_in_block: int,
    dtype: torch.dtype,
    loss_error: float,
    gradient_error: float,
) -> None:
    losses, gradient = _reference(dtype)
    results = run_ranks(world_size, _ours, dtype, rows_in_block)
    for found, _ in results:
        np.testing.assert_allclose(found, losses, rtol=0, atol=loss_error)
    found = np.concatenate([part for _, part in results], axis=-1)
    np.testing.assert_allclose(found, gradient, rtol=gradient_error, atol=1e-7)


def _confident(world_size: int) -> tuple[float, float]:
    """Gradient at a label with probability 1 - 63 exp(-12), in bf16."""
    logits = torch.zeros(1, VOCAB, dtype=torch.bfloat16)
    logits[0, 7] = 12.0
    part = VOCAB // world_size
    mine = logits[:, dist.get_rank() * part :][:, :part].contiguous().requires_grad_()
    labels = torch.tensor([7])
    losses, _ = vocab_parallel_cross_entropy(mine * 1, labels, dist.group.WORLD, VOCAB)
    losses.sum().backward()
    return mine.grad[0, 7].item()


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_well_predicted_token_still_has_a_gradient(world_size: int) -> None:
    """In bf16 the nearest number to its probability is 1, which would leave none."""
    rest = (VOCAB - 1) * torch.tensor(-12.0, dtype=torch.float64).exp()
    found = run_ranks(world_size, _confident, world_size)[0]
    assert found == pytest.approx(-(rest / (1 + rest)).item(), rel=2**-8)


def _second_backward() -> str:
    logits = torch.randn(2, VOCAB, requires_grad=True)
    labels = torch.tensor([3, 4])
    losses, _ = vocab_parallel_cross_entropy(logits * 1, labels, dist.group.WORLD, VOCAB)
    losses.sum().backward(retain_graph=True)
    try:
        losses.sum().backward()
    except RuntimeError as error:
        return str(error)
    return ""


def test_a_second_backward_pass_is_refused() -> None:
    """The first one has scaled the gradient in place: a second would be silently wrong."""
    assert "modified by an inplace operation" in run_ranks(1, _second_backward)[0]


def _half_right(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Labels of which every other one is the likeliest token."""
    best = logits[..., :vocab_size].argmax(-1)
    every_other = torch.arange(labels.numel()).view_as(labels) % 2 == 0
    return best.where(every_other, labels % vocab_size)


def _padded(vocab_size: int, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Losses, this rank's part of the gradient, and hits; padding logits are the largest."""
    logits, labels, upstream = _inputs(dtype)
    labels = _half_right(logits, labels, vocab_size)
    logits[..., vocab_size:] = 500.0
    part = VOCAB // dist.get_world_size()
    mine = logits[..., dist.get_rank() * part :][..., :part].contiguous().requires_grad_()
    group = dist.group.WORLD
    losses, hits = vocab_parallel_cross_entropy(mine * 1, labels, group, vocab_size)
    losses.backward(upstream)
    found = losses.detach().double().numpy(), mine.grad.double().numpy()
    return *found, hits.flatten().tolist()


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("vocab_size", [61, 33, 5])
@pytest.mark.parametrize(
    ("dtype", "gradient_error"), [(torch.float32, 1e-5), (torch.bfloat16, 3 * 2**-8)]
)
def test_padding_has_no_share(
    world_size: int, vocab_size: int, dtype: torch.dtype, gradient_error: float
) -> None:
    """As torch has it of the logits without padding, also where a rank has nothing else."""
    logits, labels, upstream = _inputs(dtype)
    labels = _half_right(logits, labels, vocab_size)
    exact = logits[..., :vocab_size].double().requires_grad_()
    expected = functional.cross_entropy(exact.flatten(0, 1), labels.flatten(), reduction="none")
    expected.backward(upstream.flatten().double())
    best = exact.detach().amax(-1)
    right = (exact.detach().gather(-1, labels.unsqueeze(-1)).squeeze(-1) == best).flatten().tolist()
    assert 0 < sum(right) < len(right)
    results = run_ranks(world_size, _padded, vocab_size, dtype)
    for found, _, hits in results:
        np.testing.assert_allclose(found.ravel(), expected.detach(), rtol=0, atol=1e-5)
        assert hits == right
    gradient = np.concatenate([part for _, part, _ in results], axis=-1)
    real = gradient[..., :vocab_size]
    np.testing.assert_allclose(real, exact.grad, rtol=gradient_error, atol=1e-7)
    assert (gradient[..., vocab_size:] == 0).all()
