"""Runs to compare."""

from __future__ import annotations

import pytest

from tests.report.twins import FIXED_SIZE, PROGRESSIVE, write_run


@pytest.fixture
def runs(tmp_path):
    """The progressive run, which grows after 40 steps, and its twin."""
    return (
        write_run(tmp_path / "progressive", PROGRESSIVE, grow_at=40),
        write_run(tmp_path / "fixed", FIXED_SIZE),
    )
