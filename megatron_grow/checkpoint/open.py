"""Open a checkpoint of whatever format."""

from __future__ import annotations

from pathlib import Path

from megatron_grow.checkpoint.huggingface.files import CONFIG
from megatron_grow.checkpoint.huggingface.source import HuggingFaceSource
from megatron_grow.checkpoint.layout import METADATA, locate
from megatron_grow.checkpoint.source import Source
from megatron_grow.checkpoint.torch_dist_source import TorchDistSource
from megatron_grow.config.errors import UserError


def open_source(path: Path) -> Source:
    """The checkpoint at ``path``: a step's directory, a root with a tracker file, or a model.

    Raises:
        UserError: nothing there is a checkpoint, or it is damaged.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a directory")
    if (path / CONFIG).exists() and not (path / METADATA).exists():
        return HuggingFaceSource(path)
    found = locate(path)
    if (found / METADATA).exists():
        return TorchDistSource(found)
    raise UserError(f"{found} is no checkpoint: it has no {METADATA}")
