"""Digests of what a checkpoint directory holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from blake3 import blake3

from megatron_grow.checkpoint.layout import MANIFEST
from megatron_grow.files.regular import read_regular
from megatron_grow.inputs.errors import UserError
from megatron_grow.state.memory import contiguous


@dataclass(frozen=True)
class TensorDigest:
    """One stored tensor."""

    shape: tuple[int, ...]
    """As Megatron's checkpoint has it."""
    dtype: str
    digest: str
    """BLAKE3 of the digests of its blocks, in order."""


@dataclass(frozen=True)
class Shard:
    """One file of chunks of tensors."""

    size: int
    """Bytes."""
    seals: dict[int, int]
    """What tells the chunk that begins at a byte from any other, without reading its values."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint directory holds."""

    files: dict[str, str]
    """Digests of the files without tensors, by name."""
    tensors: dict[str, TensorDigest] = field(default_factory=dict)
    """By stored name; none where nobody has computed their digests."""
    elements_per_block: int = 0
    """How tensors are cut into blocks for their digests."""
    shards: dict[str, Shard] = field(default_factory=dict)
    """By name; none where a format has no chunks."""


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
    shards: Mapping[str, Shard] | None = None,
) -> None:
    """Write down what ``directory`` holds.

    Args:
        directory: of the checkpoint.
        files: names of those of its files that hold no tensors.
        tensors: as in :class:`Manifest`.
        elements_per_block: as there.
        shards: as there.
    """
    content = {
        "algorithm": "blake3",
        "elements_per_block": elements_per_block,
        "files": {name: blake3((directory / name).read_bytes()).hexdigest() for name in files},
        "shards": {name: asdict(entry) for name, entry in (shards or {}).items()},
        "tensors": {name: asdict(entry) for name, entry in (tensors or {}).items()},
    }
    (directory / MANIFEST).write_text(json.dumps(content, indent=1))


def read_manifest(directory: Path) -> Manifest | None:
    """The manifest of ``directory``; None where there is none.

    Raises:
        UserError: damaged.
    """
    path = directory / MANIFEST
    try:
        content = json.loads(read_regular(path))
        tensors = {
            name: TensorDigest(tuple(entry["shape"]), entry["dtype"], entry["digest"])
            for name, entry in content["tensors"].items()
        }
        shards = {
            name: Shard(int(entry["size"]), {int(at): int(s) for at, s in entry["seals"].items()})
            for name, entry in content.get("shards", {}).items()
        }
        return Manifest(dict(content["files"]), tensors, int(content["elements_per_block"]), shards)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}") from None


def read_checked(path: Path) -> bytes:
    """The content of a file, compared with its directory's manifest if there is one.

    Raises:
        UserError: another content than the manifest's, or it cannot be read.
        FileNotFoundError: it does not exist.
    """
    content = read_regular(path)
    manifest = read_manifest(path.parent)
    expected = manifest.files.get(path.name) if manifest else None
    if expected is not None and blake3(content).hexdigest() != expected:
        raise UserError(f"{path} is damaged: its digest is not that of {MANIFEST}")
    return content
