"""Grow, reshard, import, export and verify checkpoints; see docs/converter.md."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout need not be installed

from megatron_grow.convert.command import main

if __name__ == "__main__":
    sys.exit(main())
