"""Checkpoints without a model: state that is painted on one rank, written, and read back."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from megatron_grow.checkpoint.layout import step_dir
from megatron_grow.checkpoint.record import Record, read_record
from megatron_grow.checkpoint.torch_dist.chunk_reader import ChunkReader
from megatron_grow.checkpoint.torch_dist.names import tensor_key
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.parallel.agreement import place
from megatron_grow.state.boxes import full
from megatron_grow.state.fresh import fresh
from megatron_grow.state.kinds import MAIN_PARAM
from megatron_grow.state.piece import Piece
from megatron_grow.state.tensors import LogicalTensor, Normal
from megatron_grow.train.saves import Saves
from tests.toy import MODEL

SMALL = replace(MODEL, num_layers=1)
TENSORS = logical_tensors(SMALL)
KINDS = (MAIN_PARAM, "exp_avg")


def values(tensor: LogicalTensor, kind: str, seed: int) -> torch.Tensor:
    """What the painted state ``seed`` holds."""
    named = replace(tensor, key=f"{tensor.key} {kind}")
    return fresh(named, full(tensor.shape), Normal(1.0), seed)


def state(step: int, seed: int) -> tuple[Record, list[Piece]]:
    """The record and the painted state ``seed`` of a run at ``step``; ranks own tensors in turn."""
    rank, world_size = place()
    pieces = [
        Piece(
            key,
            kind,
            full(tensor.shape),
            values(tensor, kind, seed),
            owned=number % world_size == rank,
        )
        for number, (key, tensor) in enumerate(TENSORS.items())
        for kind in KINDS
    ]
    return Record(step, 0, 0, 0, seed, asdict(SMALL), "fp32", {}), pieces


def write(root: Path, step: int, seed: int, *, asynchronous: bool = False, **options: Any) -> Path:
    """Save the painted state ``seed`` as the checkpoint of ``step``."""
    with Saves(lambda *complete: None, asynchronous=asynchronous) as saves:
        saves.begin(root, *state(step, seed), TENSORS, **options)
    return step_dir(root, step)


def read(path: Path) -> int:
    """The seed of the state that a checkpoint holds; fails unless it is whole and of one piece."""
    seed, reader = read_record(path).optimizer_step, ChunkReader(path)
    for key, tensor in TENSORS.items():
        for kind in KINDS:
            name = key if kind == MAIN_PARAM else tensor_key(key, kind)
            stored = reader.read(name, full(tensor.checkpoint_shape))
            expected = values(tensor, kind, seed).view(tensor.checkpoint_shape)
            assert torch.equal(stored, expected), (path, name)
    return seed
