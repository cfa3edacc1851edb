"""``pretrain_progressive.py`` with a rank that sends itself a signal in its first attempt.

signalled.py RANK STEP SIGNAL [options of the command]
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial

from megatron_grow.parallel.failure import leave
from megatron_grow.train.entry import main
from tests.train.processes import at_step

rank, step, name = (sys.argv.pop(1) for _ in range(3))
if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (rank, "0"):
    at_step(int(step), partial(os.kill, os.getpid(), signal.Signals[name]))
leave(main())
