"""What looks, while it is imported, at whether there is CUDA: before it seems to be there."""

from __future__ import annotations

from importlib import import_module

for _name in (
    "megatron.core.models.gpt",
    "megatron.core.models.bert",
    "megatron.core.optimizer",
    "megatron.core.pipeline_parallel",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "megatron_grow.train.job",
):
    import_module(_name)
