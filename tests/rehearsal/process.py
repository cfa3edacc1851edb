"""A process of its own, which may pretend that there is CUDA."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.warm"])


def apart(function: Callable[..., Any], *args: Any, timeout: float = 600) -> Any:
    """``function(*args)``, importable by name, in a process forked from a warm one; its result."""
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_call, args=(theirs, function, args), daemon=False)
    process.start()
    theirs.close()
    try:
        assert ours.poll(timeout), "it hangs"
        ok, result = ours.recv()
    finally:
        process.kill()
        process.join()
    assert ok, result
    return result


def _call(connection: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        connection.send((True, function(*args)))
    except BaseException:
        connection.send((False, traceback.format_exc()))


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
