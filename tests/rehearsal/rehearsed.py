"""What a rehearsal finds, in a process that may pretend that there is CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def rehearsed(
    argv: list[str],
    world_size: int,
    passes: Sequence[int] | None = None,
    saves: bool | None = None,
) -> tuple[dict[str, Any], str]:
    """What a rehearsal has found, and how it reads; for a process :func:`apart`."""
    from rich.console import Console

    from megatron_grow.cost.devices import DEVICES
    from megatron_grow.rehearsal.rehearse import rehearse
    from megatron_grow.rehearsal.report import render, to_dict

    ranks = range(world_size) if passes is None else passes
    found = rehearse(argv, world_size=world_size, passes=ranks, device=DEVICES["h100"], saves=saves)
    console = Console(width=160, markup=False)
    with console.capture() as capture:
        console.print(render(found))
    return to_dict(found), capture.get()
