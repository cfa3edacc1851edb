"""Digests of what a checkpoint directory holds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from blake3 import blake3

from megatron_grow.config.errors import UserError
from megatron_grow.state.memory import contiguous

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class TensorDigest:
    """One stored tensor."""

    shape: tuple[int, ...]
    """As Megatron's checkpoint has it."""
    dtype: str
    digest: str
    """BLAKE3 of the digests of its blocks, in order."""


def digest(values: torch.Tensor) -> bytes:
    """BLAKE3 of the values, in row-major order."""
    raw = contiguous(values).reshape(-1).view(torch.uint8).numpy()
    return blake3(raw).digest()  # type: ignore[arg-type]


def digest_of(blocks: Iterable[bytes]) -> str:
    """The digest of a tensor, from those of its blocks."""
    return blake3(b"".join(blocks)).hexdigest()


def write_manifest(
    directory: Path,
    files: Iterable[str],
    tensors: dict[str, TensorDigest] | None = None,
    elements_per_block: int = 0,
) -> None:
    """Write down what ``directory`` holds.

    Args:
        directory: of the checkpoint.
        files: names of those of its files that hold no tensors.
        tensors: the tensors, by stored name; absent: nobody has computed their digests.
        elements_per_block: how tensors are cut into blocks for their digests.
    """
    content = {
        "algorithm": "blake3",
        "elements_per_block": elements_per_block,
        "files": {name: blake3((directory / name).read_bytes()).hexdigest() for name in files},
        "tensors": {name: asdict(entry) for name, entry in (tensors or {}).items()},
    }
    (directory / MANIFEST).write_text(json.dumps(content, indent=1))


def read_manifest(directory: Path) -> tuple[dict[str, str], dict[str, TensorDigest], int] | None:
    """Digests of files and tensors, and elements in a block; None where there is no manifest.

    Raises:
        UserError: damaged.
    """
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_text())
        tensors = {
            name: TensorDigest(tuple(entry["shape"]), entry["dtype"], entry["digest"])
            for name, entry in content["tensors"].items()
        }
        return dict(content["files"]), tensors, int(content["elements_per_block"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def read_checked(path: Path) -> bytes:
    """The content of a file, compared with its directory's manifest if there is one.

    Raises:
        UserError: another content than the manifest's.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    manifest = read_manifest(path.parent)
    expected = manifest[0].get(path.name) if manifest else None
    if expected is not None and blake3(content).hexdigest() != expected:
        raise UserError(f"{path} is damaged: its digest is not that of {MANIFEST}")
    return content
