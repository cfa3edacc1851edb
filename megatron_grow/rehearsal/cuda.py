"""What ``torch.cuda`` answers where there is no CUDA: a node of GPUs of one kind.

Installed once in a process, after megatron-core and torch's compiler have been imported: both look
at the build while they are.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from megatron_grow.cost.devices import Device
from megatron_grow.rehearsal import shim


def install(kind: Device, wait: Callable[[], None]) -> None:
    """Let this process find the GPUs of a node.

    Args:
        kind: of the GPUs.
        wait: called where the host waits for all that a GPU does, or for a stream, or an event.
    """
    shim.install()
    _answer(kind)
    torch.cuda.synchronize = lambda device=None: wait()
    _answer_streams(wait)
    _answer_generators()
    _keep_out_of_c()
    _send_attention_to_its_kernels()


def _answer(kind: Device) -> None:
    cuda: Any = torch.cuda
    name = f"NVIDIA {' '.join(kind.product)} (simulated)".upper()
    properties = types.SimpleNamespace(
        major=9, minor=0, total_memory=int(kind.memory), multi_processor_count=132, name=name
    )

    def set_device(device: Any) -> None:
        shim.select(device.index if isinstance(device, torch.device) else int(device))

    cuda.is_available = lambda: True
    cuda.is_initialized = lambda: True
    cuda.device_count = lambda: shim.DEVICES
    cuda.current_device = shim.current
    cuda.set_device = set_device
    cuda.init = cuda._lazy_init = lambda: None
    cuda.empty_cache = lambda: None
    cuda.reset_peak_memory_stats = lambda device=None: None
    cuda.max_memory_allocated = cuda.memory_allocated = lambda device=None: 0
    cuda.get_device_properties = lambda device=None: properties
    cuda.get_device_capability = lambda device=None: (9, 0)
    cuda.get_device_name = lambda device=None: name
    cuda.is_bf16_supported = lambda *args, **kwargs: True
    cuda.nvtx.range_push = cuda.nvtx.range_pop = lambda *args, **kwargs: None
    torch._C._cuda_getDevice = shim.current
    torch.Tensor.pin_memory = lambda self, *args, **kwargs: self  # type: ignore[method-assign]


def _answer_streams(wait: Callable[[], None]) -> None:
    """One stream, on which everything has been done."""

    class Event:
        def __init__(self, *args: Any, **kwargs: Any) -> None: ...
        def record(self, stream: Any = None) -> None: ...
        def wait(self, stream: Any = None) -> None: ...
        def synchronize(self) -> None:
            wait()

        def query(self) -> bool:
            return True

        def elapsed_time(self, other: Event) -> float:
            return 0.0

    class Stream:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.device = torch.device("cuda", shim.current())

        def wait_stream(self, other: Stream) -> None: ...
        def wait_event(self, event: Event) -> None: ...
        def synchronize(self) -> None:
            wait()

        def record_event(self, event: Event | None = None) -> Event:
            return event or Event()

        def __enter__(self) -> Stream:
            return self

        def __exit__(self, *error: object) -> None: ...

    cuda: Any = torch.cuda
    cuda.Stream, cuda.Event = Stream, Event
    cuda.current_stream = cuda.default_stream = lambda device=None: Stream()
    cuda.stream = lambda stream: contextlib.nullcontext()
    torch.Tensor.record_stream = lambda self, s: None  # type: ignore[method-assign]


def _answer_generators() -> None:
    """Generators that have a state and draw nothing."""

    class Generator:
        def __init__(self) -> None:
            self._state = torch.zeros(16, dtype=torch.uint8)

        def get_state(self) -> torch.Tensor:
            return self._state

        def set_state(self, state: torch.Tensor) -> None:
            self._state = state

        def manual_seed(self, seed: int) -> None: ...

    cuda: Any = torch.cuda
    cuda.default_generators = tuple(Generator() for _ in range(shim.DEVICES))
    cuda.manual_seed = lambda seed: None
    cuda.get_rng_state = lambda device="cuda": torch.zeros(16, dtype=torch.uint8)
    cuda.set_rng_state = lambda new_state, device="cuda": None
    cuda.random.get_rng_state = cuda.get_rng_state
    cuda.random.set_rng_state = cuda.set_rng_state


def _keep_out_of_c() -> None:
    """Take the ways of Python where C++ would look for memory."""
    # Module._apply swaps fake tensors, which weak references forbid; real parameters get new data.
    torch.utils.swap_tensors = lambda a, b: setattr(a, "data", b.data)
    # A fake tensor would read its entries one by one; a real one comes to the host once.
    FakeTensor.tolist = lambda self: self.cpu().tolist()  # type: ignore[method-assign]
    # torch.tensor(..., device="cuda") moves to the device after a dispatch mode has seen it.
    torch._C._set_only_lift_cpu_tensors(True)


def _send_attention_to_its_kernels() -> None:
    """A CPU build knows no fused attention of CUDA, and would make the (s, s) matrices."""
    plain = functional.scaled_dot_product_attention
    aten = torch.ops.aten

    def attend(
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if not q.is_cuda:
            return plain(
                q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if enable_gqa and q.dtype is torch.float32:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        if q.dtype is torch.float32 or attn_mask is not None:  # flash wants 16 bits and no mask
            mask = None if attn_mask is None else _bias(attn_mask, q, k)
            return aten._scaled_dot_product_efficient_attention(
                q, k, v, mask, q.requires_grad, dropout_p, is_causal, scale=scale
            )[0]
        return aten._scaled_dot_product_flash_attention(
            q, k, v, dropout_p, is_causal, False, scale=scale
        )[0]

    functional.scaled_dot_product_attention = attend  # type: ignore[assignment]


def _bias(mask: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """What the memory-efficient kernel adds to the scores, of (batch, heads, s, s) by strides."""
    bias = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill_(~mask, -torch.inf)
    return bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
