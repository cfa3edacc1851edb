"""Documents in the rows of Parquet files, read where pyarrow is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_grow.data.preprocess.compression import DamagedError, UnreadableError


def text_columns(path: Path) -> list[str]:
    """The columns of ``path`` that hold text.

    Raises:
        UnreadableError: pyarrow is not installed.
        DamagedError: no whole Parquet file.
    """
    try:
        import pyarrow
        from pyarrow.parquet import read_schema
    except ImportError as error:
        raise UnreadableError("Parquet: pip install pyarrow to read it") from error
    try:
        schema = read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DamagedError(str(error)) from error
    return [field.name for field in schema if _is_text(field.type)]


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def read_rows(path: Path, column: str) -> Iterator[str]:
    """The text of every row in order; an absent one is empty.

    Raises:
        DamagedError: a page that cannot be read.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                yield from (text or "" for text in batch.column(0).to_pylist())
    except (ArrowException, OSError) as error:
        raise DamagedError(str(error)) from error
