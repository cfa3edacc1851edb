"""What a conversion says while it works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich.progress
from rich.console import Console


class Progress:
    """A bar with rate and time left for each task, on a terminal."""

    def __init__(self, enabled: bool = True) -> None:
        """Nothing is shown if not ``enabled``, or where the console is no terminal."""
        self._console = Console(stderr=True)
        self._enabled = enabled and self._console.is_terminal

    @contextmanager
    def task(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a task of ``total`` bytes; the function is told of those that are done."""
        bar = rich.progress.Progress(
            "{task.description}",
            rich.progress.BarColumn(),
            rich.progress.DownloadColumn(),
            rich.progress.TransferSpeedColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=not self._enabled,
        )
        with bar:
            number = bar.add_task(what, total=total)
            yield lambda count: bar.update(number, advance=count)
