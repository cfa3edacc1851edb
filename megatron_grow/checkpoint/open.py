"""Open a checkpoint of whatever format."""

from __future__ import annotations

from pathlib import Path

from megatron_grow.checkpoint.huggingface.files import CONFIG
from megatron_grow.checkpoint.huggingface.reader import HuggingFaceReader
from megatron_grow.checkpoint.layout import COMPLETE, METADATA, locate
from megatron_grow.checkpoint.legacy.reader import LegacyReader
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.checkpoint.torch_dist.reader import TorchDistReader


def find(path: Path, named: str = "") -> Path:
    """The directory that :func:`open_reader` opens.

    Raises:
        UserError: nothing there is a checkpoint.
    """
    if (path / CONFIG).exists() and not (path / METADATA).exists():
        return path
    return locate(path, named)


def open_reader(path: Path, named: str = "", *, once: bool = False) -> Reader:
    """The checkpoint at ``path``: a step's directory, a root with a tracker file, or a model.

    Args:
        path: a directory.
        named: begins the message of an error, for example ``checkpoint.load=``.
        once: whether its values are read only once, so that the page cache need not keep them.

    Raises:
        UserError: nothing there is a checkpoint, or it is damaged.
    """
    found = find(path, named)
    if (found / CONFIG).exists() and not (found / METADATA).exists():
        return HuggingFaceReader(found)
    if (found / COMPLETE).exists():
        return TorchDistReader(found, once=once)
    return LegacyReader(found)
