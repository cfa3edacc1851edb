"""The files of a Hugging Face model's directory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megatron_grow.checkpoint.side_files import parse_object
from megatron_grow.files.regular import check_regular, read_regular
from megatron_grow.inputs.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""Which tensor is in which file, where there are several."""

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Of weights, by their names in safetensors."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        UserError: there is none.
    """
    return parse_object(_read(path), path)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: not a Hugging Face model's directory") from None


def weight_files(directory: Path) -> dict[str, set[str]]:
    """Which tensors are in which file, by the file's name.

    Raises:
        UserError: no safetensors, or an index or file that cannot be used.
    """
    if (directory / WEIGHTS).exists():
        return {WEIGHTS: stored_names(directory / WEIGHTS)}
    if not (directory / INDEX).exists():
        if pickles := sorted(path.name for path in directory.glob("*.bin")):
            raise UserError(
                f"{directory / pickles[0]} is a pickle, which may run code when it is read; write "
                "the model as safetensors first: transformers' save_pretrained does"
            )
        raise UserError(f"{directory} holds neither {WEIGHTS} nor {INDEX}")
    table = read_object(directory / INDEX).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise UserError(f"{directory / INDEX} has no table weight_map")
    files: dict[str, set[str]] = defaultdict(set)
    for name, file in table.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise UserError(f"{directory / INDEX}: {name} is in {file!r}, not a file beside it")
        files[file].add(name)
    for file, names in files.items():
        for name in sorted(names ^ stored_names(directory / file)):
            where = f"only in {INDEX}" if name in names else f"not in {INDEX}"
            raise UserError(f"{directory / file}: {name} is {where}")
    return files


def stored_names(path: Path) -> set[str]:
    """Names of the tensors in a safetensors file.

    Raises:
        UserError: missing, truncated or damaged.
    """
    with opened(path) as file:
        return set(file.keys())


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """A safetensors file, mapped into memory for as long as it is open.

    Raises:
        UserError: missing, truncated or damaged.
    """
    try:
        check_regular(path, path.stat())
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the model is not complete") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is truncated or damaged: {error}") from None
