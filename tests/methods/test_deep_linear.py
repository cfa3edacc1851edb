"""Shared layers of a deep linear network, whose training is known in closed form."""

from __future__ import annotations

import numpy as np
import torch

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.config.stages import StageSection
from tests.distributed import run_ranks
from tests.toy import begin, layout, run_config

LAYERS, SIZE, STEPS, RATE = 4, 3, 6, 0.02
MODEL = ModelConfig(
    architecture="tests.architectures.deep_linear:DeepLinear",
    num_layers=LAYERS,
    layer_sharing=f"1x{LAYERS}",
    hidden_size=SIZE,
    num_attention_heads=1,
    vocab_size=8,
    max_position_embeddings=SIZE,
)
BASIS = np.linalg.qr(np.random.default_rng(3).normal(size=(SIZE, SIZE)))[0]
BEGIN, TARGET = (BASIS @ np.diag(x) @ BASIS.T for x in ([0.9, 1.1, 1.2], [0.4, 1.6, 2.0]))
"""They commute, and the target is positive definite."""
power = np.linalg.matrix_power


def train(parallel: dict) -> list[tuple[np.ndarray, list[float]]]:
    """On a rank: the matrix that all layers are, after each step, and how gradients correlated."""
    sgd = OptimizerSection(
        optimizer="sgd", lr=RATE, sgd_momentum=0.0, weight_decay=0.0, clip_grad=0.0
    )
    config = run_config(
        StageSection(parallel=parallel),
        model=MODEL,
        optimizer=sgd,
        global_batch_size=1,
        seq_length=SIZE,
    )
    live, found = begin(config, 1), []
    for shard in live.shards():
        shard.main.data.copy_(torch.from_numpy(BEGIN))
    live.write_back()
    batch = {"inputs": torch.eye(SIZE), "targets": torch.from_numpy(TARGET).float()}
    for step in range(1, STEPS + 1):
        live.forward_backward(step, iter([batch]))
        pairs = [(layer, layer + 1) for layer in range(LAYERS - 1)]
        correlations = live.gradient_correlations(pairs)
        live.share_gradients()
        live.update(live.gradient_norm())
        first, *others = (shard.main.detach().numpy().copy() for shard in live.shards())
        assert all(np.array_equal(first, other) for other in others)
        found.append((first, correlations))
    live.release()
    return found


def test_lemma_1() -> None:
    """Yang et al. 2021, Lemma 1: the mean of the layers' gradients is W^(L-1) (W^L - Phi).

    Gradients of shared layers are summed, so the rate of the mean is L times as large; and the sum
    is the gradient of the network that has one matrix.
    """
    (found,) = run_ranks(1, train, layout())
    expected = BEGIN
    for weight, correlations in found:
        tied = torch.from_numpy(expected).requires_grad_()
        out = torch.eye(SIZE, dtype=torch.float64)
        for _ in range(LAYERS):
            out = tied @ out
        ((out - torch.from_numpy(TARGET)).square().sum() / 2).backward()
        mean = power(expected, LAYERS - 1) @ (power(expected, LAYERS) - TARGET)
        assert tied.grad is not None
        np.testing.assert_allclose(tied.grad.numpy(), LAYERS * mean, atol=1e-12)
        expected = expected - RATE * LAYERS * mean
        np.testing.assert_allclose(weight, expected, atol=1e-6)
        assert np.allclose(correlations, 1.0), "all have the same gradient"
    distances = [np.linalg.norm(power(weight, LAYERS) - TARGET) for weight, _ in found]
    assert distances == sorted(distances, reverse=True) and distances[-1] < distances[0] / 2
