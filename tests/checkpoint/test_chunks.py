"""Tensors as torch stores them, written and read without torch."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch

from megatron_grow.checkpoint.torch_dist.chunks import DamagedError, read_tensor, stored_tensor

TENSORS = {
    "matrix": torch.randn(300, 50),
    "bf16": torch.randn(7, 3, 5).bfloat16(),
    "half": torch.randn(33).half(),
    "double": torch.randn(2, 2, 2, 2, dtype=torch.float64),
    "integers": torch.arange(1000),
    "one value": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
}


@pytest.mark.parametrize("name", TENSORS)
def test_what_is_written_is_what_torch_writes(name: str) -> None:
    """All but the 40 digits of an identifier that torch derives from the content."""
    values, theirs = TENSORS[name], io.BytesIO()
    ours = io.BytesIO(b"".join(stored_tensor(values)))
    torch.save(values, theirs)
    assert zipfile.ZipFile(ours).testzip() is None  # by zlib's checksums
    assert len(ours.getvalue()) == len(theirs.getvalue())
    members = [zipfile.ZipFile(file).infolist() for file in (ours, theirs)]
    for a, b in zip(*members, strict=True):
        assert (a.filename, a.header_offset, a.file_size) == (
            b.filename,
            b.header_offset,
            b.file_size,
        )
        if "serialization_id" not in a.filename:
            assert a.CRC == b.CRC
    ours.seek(0)
    assert torch.equal(torch.load(ours, weights_only=True), values)


@pytest.mark.parametrize("name", TENSORS)
def test_what_torch_writes_is_read_anywhere_in_a_file(name: str, tmp_path: Path) -> None:
    values, path = TENSORS[name], tmp_path / "file"
    with path.open("wb") as file:
        file.write(b"before")
        torch.save(values, file)
        length = file.tell() - 6
        file.write(b"PK\x05\x06 and after")
    found = read_tensor(path, 6, length)
    assert found.dtype == values.dtype and torch.equal(found, values)


def test_a_transposed_view_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    torch.save(torch.randn(3, 4).t(), path)
    with pytest.raises(DamagedError, match="row-major"):
        read_tensor(path, 0, path.stat().st_size)


def test_every_flipped_value_is_found(tmp_path: Path) -> None:
    path, values = tmp_path / "file", torch.arange(8.0)
    torch.save(values, path)
    good = path.read_bytes()
    start = good.index(values.numpy().tobytes())
    for place in range(start, start + values.nbytes):
        bad = bytearray(good)
        bad[place] ^= 16
        path.write_bytes(bad)
        with pytest.raises(DamagedError, match="checksum"):
            read_tensor(path, 0, len(bad))
