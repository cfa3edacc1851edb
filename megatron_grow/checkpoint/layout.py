"""Names that checkpoints of every format have in common, and where they stand in a root."""

from __future__ import annotations

from pathlib import Path

import torch

TRACKER = "latest_checkpointed_iteration.txt"
"""In the root: the step of the newest complete checkpoint; Megatron-LM's own name."""
PENDING = f".{TRACKER}"
"""The tracker file of a checkpoint that is about to appear; renamed when it has."""
RECORD = "megatron_grow.json"
"""Step, stage, growth history and the run's configuration."""
MANIFEST = "manifest.json"
"""Digests of what is in the directory."""
SIDE_FILES = "huggingface"
"""Directory of the files that an imported model came with: tokenizer, generation settings."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What weights are stored as."""


def step_dir(root: Path, step: int) -> Path:
    """Directory of the checkpoint of ``step``."""
    return root / f"iter_{step:07d}"


def replaced(checkpoint: Path) -> Path:
    """Where an older checkpoint of the same step stands while a new one takes its place."""
    return checkpoint.with_name(f".{checkpoint.name}.replaced")
