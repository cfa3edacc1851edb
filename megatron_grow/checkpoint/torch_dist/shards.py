"""Shards as torch's writer leaves them, and what the manifest says of them."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from megatron_grow.checkpoint.manifest import Shard
from megatron_grow.checkpoint.torch_dist.chunks import seal
from megatron_grow.inputs.errors import UserError


@dataclass(frozen=True)
class RankShards:
    """The shards of one rank."""

    rank: int
    host: str
    shards: dict[str, Shard]


class ShardWriter(dcp.FileSystemWriter):
    """torch's writer rather than megatron-core's: the same files, without its helper processes."""

    def __init__(self, directory: Path) -> None:
        """Nothing is written yet."""
        super().__init__(directory, sync_files=True)
        self.shards: dict[str, Shard] = {}
        """Files that this rank has written, by name."""

    def write_data(self, *args: Any, **kwargs: Any) -> Future[list[WriteResult]]:
        """Write this rank's chunks, and note what tells them from those of another save."""
        results = super().write_data(*args, **kwargs)
        by_file = defaultdict(list)
        for result in results.value():
            by_file[result.storage_data.relative_path].append(result)
        for name, chunks in by_file.items():
            self.shards[name] = _shard(Path(self.path) / name, chunks)
        return results


def check_seen(directory: Path, written: Iterable[RankShards]) -> dict[str, Shard]:
    """All shards, each of which this rank sees in ``directory`` as its writer left it.

    Raises:
        UserError: it does not; the message names the rank and the host that wrote it.
    """
    shards: dict[str, Shard] = {}
    for rank in written:
        for name, shard in rank.shards.items():
            path = directory / name
            size = path.stat().st_size if path.exists() else None
            if size != shard.size:
                seen = "nothing" if size is None else f"{size} bytes"
                raise UserError(
                    f"{directory.parent} is not the same directory on all ranks: rank {rank.rank} "
                    f"on {rank.host} wrote {shard.size} bytes of {name}, of which rank 0 on "
                    f"{socket.gethostname()} sees {seen}; checkpoints need a shared file system"
                )
        shards |= rank.shards
    return shards


def _shard(path: Path, chunks: Iterable[WriteResult]) -> Shard:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        seals = {
            chunk.storage_data.offset: seal(
                descriptor, chunk.storage_data.offset, chunk.storage_data.length
            )
            for chunk in chunks
            if chunk.index.offset is not None  # a tensor's, not an object's
        }
        return Shard(os.fstat(descriptor).st_size, seals)
    finally:
        os.close(descriptor)
