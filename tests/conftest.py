"""What holds for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import active_children

import pytest


@pytest.fixture(autouse=True, scope="module")
def no_process_is_left() -> Iterator[None]:
    """A process that outlives its tests could be waited for at exit, for ever."""
    yield
    left = active_children()
    for process in left:
        process.kill()
        process.join()
    assert left == []
