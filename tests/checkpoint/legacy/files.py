"""Legacy checkpoints as stock Megatron-LM writes them: each rank's ``state_dict`` in its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from tests.checkpoint.stock.models import STEP, build, stock_args


def rank_file(root: Path) -> Path:
    """Where this rank's file is, by the rule of Megatron-LM's ``get_checkpoint_name``."""
    name = f"mp_rank_{parallel_state.get_tensor_model_parallel_rank():02d}"
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        name += f"_{parallel_state.get_pipeline_model_parallel_rank():03d}"
    return root / name / "model_optim_rng.pt"


def save(
    model: ModelConfig,
    parallel: ParallelConfig,
    root: Path,
    vocab_size: int | None = None,
    **more: Any,
) -> Path:
    """On a rank: build the model and save it as the legacy format has it."""
    chunks = build(model, parallel)
    state: dict[str, Any] = {
        "args": stock_args(model, parallel, ckpt_format="torch", vocab_size=vocab_size),
        "checkpoint_version": 3.0,
        "iteration": STEP,
    }
    for number, chunk in enumerate(chunks):
        entry = f"model{number}" if len(chunks) > 1 else "model"
        state[entry] = chunk.state_dict_for_save_checkpoint()
    path = rank_file(root)
    path.parent.mkdir(parents=True)
    torch.save(state | more, path)
    return path


def loads(model: ModelConfig, parallel: ParallelConfig, root: Path) -> bool:
    """On a rank: whether megatron-core's own model takes all of a file, and holds its values."""
    chunks = build(model, parallel)
    expected = [
        {n: p.clone() for n, p in chunk.state_dict().items() if p is not None} for chunk in chunks
    ]
    with torch.serialization.safe_globals([type(stock_args(model, parallel))]):
        state = torch.load(rank_file(root), weights_only=True)
    for number, (chunk, values) in enumerate(zip(chunks, expected, strict=True)):
        for parameter in chunk.parameters():
            parameter.data.fill_(torch.nan)
        chunk.load_state_dict(state[f"model{number}" if len(chunks) > 1 else "model"])
        for name, value in values.items():
            assert torch.equal(chunk.state_dict()[name], value), name
    assert state["iteration"] == STEP
    assert state["checkpoint_version"] == 3.0
    return True
