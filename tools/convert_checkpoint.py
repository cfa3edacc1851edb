"""Grow, reshard, import, export and verify checkpoints; see docs/converter.md."""

from __future__ import annotations

import sys

from megatron_grow.convert.command import main

if __name__ == "__main__":
    sys.exit(main())
