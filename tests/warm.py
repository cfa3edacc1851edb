"""What the fork server imports before it forks ranks; nothing here may start a thread."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
# What ranks say is read by tests; on a busy machine, torch's sockets have something to say, too.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import megatron.core.distributed
import megatron.core.models.gpt
import megatron.core.models.gpt.gpt_layer_specs
import megatron.core.optimizer
import megatron.core.pipeline_parallel  # noqa: F401

import megatron_grow.train.loop  # noqa: F401
import tests.toy  # noqa: F401

# Ranks share these pages as long as no collector writes to them.
gc.collect()
gc.freeze()
