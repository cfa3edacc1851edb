"""``pretrain_progressive.py`` as a worker of torchrun, after an accident has been prepared in it.

worker.py FILE [options of the command]; FILE holds the pickled function that prepares it.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import torch

from megatron_grow.parallel.failure import leave
from megatron_grow.train.entry import main

torch.set_num_threads(1)  # as torchrun asks of a process that imports torch
_, file, *argv = sys.argv
pickle.loads(Path(file).read_bytes())(int(os.environ["RANK"]), argv)
leave(main(argv))
