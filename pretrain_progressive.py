"""Pretrain a GPT that starts small and grows, inside one torchrun job.

torchrun --nproc-per-node 4 pretrain_progressive.py --config run.yaml [--train.train_iters 500 ...]
"""

from megatron_grow.parallel.failure import leave
from megatron_grow.train.entry import main

if __name__ == "__main__":
    leave(main())
