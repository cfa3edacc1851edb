"""The files of a report, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_grow.files.durable import write_whole
from megatron_grow.inputs.errors import UserError


def write_files(output: Path, summary: Mapping[str, Any], pictures: Mapping[str, bytes]) -> None:
    """Write ``summary.json`` and pictures, by their names, to a directory, made if it is not there.

    Raises:
        UserError: it cannot be written.
    """
    text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, data in {**pictures, "summary.json": text.encode()}.items():
            write_whole(output / name, [data])
    except OSError as error:
        raise UserError(f"--output {output} cannot be written: {error}") from error
