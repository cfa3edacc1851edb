"""The CPU seam: what megatron-core needs in order to run on a machine without a GPU.

megatron-core takes a CUDA device for granted. :func:`install` answers its questions about CUDA with
the CPU, once, at start, and does nothing where there is a GPU. Nothing else in this package asks
which device it runs on; it uses :func:`device`.
"""

from __future__ import annotations

import functools
import importlib
import logging
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed import distributed_c10d

from megatron_grow.parallel import cpu_speed

# Modules with a literal device="cuda" in a factory call. Only their name `torch` is replaced, so
# that no other code pays for the detour.
_MODULES_WITH_CUDA_LITERALS = (
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.grad_scaler",
    "megatron.core.optimizer.optimizer",
    "megatron.core.distributed.param_and_grad_buffer",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.transformer.utils",
    "megatron.core.utils",
)
_FACTORIES = ("empty", "full", "ones", "tensor", "zeros")


def device() -> torch.device:
    """The device that this process computes on."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


@functools.cache
def install() -> None:
    """Make megatron-core run on the CPU; idempotent, and without effect where CUDA is available."""
    if torch.cuda.is_available():
        return
    _answer_for_cuda()
    _answer_type_strings()
    _track_random_state()
    _keep_what_is_sent()
    facade = _torch_without_cuda_literals()
    for name in _MODULES_WITH_CUDA_LITERALS:
        importlib.import_module(name).torch = facade  # type: ignore[attr-defined]
    cpu_speed.install()


def _answer_for_cuda() -> None:
    cpu = torch.device("cpu")
    torch.cuda.current_device = lambda: cpu  # type: ignore[return-value, assignment]
    # A function of its own for each name: torch.compile refuses one that it meets under two.
    torch.cuda.set_device = lambda device: None
    torch.cuda.synchronize = lambda device=None: None
    torch.cuda.empty_cache = lambda: None
    torch.cuda.manual_seed = lambda seed: torch.manual_seed(seed)  # type: ignore[assignment]
    torch.cuda.get_rng_state = lambda device=None: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda new_state, device=None: torch.set_rng_state(new_state)
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    torch.nn.Module.cuda = lambda self, device=None: self  # type: ignore[method-assign]


def _answer_type_strings() -> None:
    """megatron-core's optimizers compare ``Tensor.type()`` with 'torch.cuda.FloatTensor' etc."""
    original = torch.Tensor.type

    def type_of(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(self, *args, **kwargs)
        return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer

    torch.Tensor.type = type_of  # type: ignore[method-assign, assignment]


def _track_random_state() -> None:
    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)

    # The tracker warns whenever the CPU generator moves inside a fork. Here that generator *is* the
    # device's, so the warning would come at every step and mean nothing.
    def is_not_expected(record: logging.LogRecord) -> bool:
        return "CPU RNG state changed within GPU RNG context" not in record.getMessage()

    logging.getLogger(random.__name__).addFilter(is_not_expected)


def _keep_what_is_sent() -> None:
    """Let gloo hold on to the memory that it sends.

    The interleaved schedule lets go of an output's memory once it has asked for it to be sent. CUDA
    keeps such memory until its stream is done; gloo would send whatever is there by then.
    """
    isend = distributed_c10d.isend

    @functools.wraps(isend)
    def send(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return isend(tensor.detach(), *args, **kwargs)  # another tensor on the same memory

    # torch compares functions: batches are made of its own.
    torch.distributed.isend = distributed_c10d.isend = send


def _torch_without_cuda_literals() -> types.ModuleType:
    """A stand-in for the module ``torch`` whose factories take device="cuda" as the CPU."""

    class Facade(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    def on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @functools.wraps(factory)
        def make(*args: Any, **kwargs: Any) -> torch.Tensor:
            if kwargs.get("device") == "cuda":
                kwargs["device"] = "cpu"
            return factory(*args, **kwargs)

        return make

    facade = Facade("torch")
    for name in _FACTORIES:
        setattr(facade, name, on_cpu(getattr(torch, name)))
    return facade
