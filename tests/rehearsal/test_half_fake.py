"""Tensors of a device that is not there, beside real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from megatron_grow.inputs.errors import UserError
from megatron_grow.rehearsal import shim
from tests.forks import apart

VIEWS: tuple[Callable[[Any], Any], ...] = (
    lambda x: x[10:20, ::3],
    lambda x: x.view(-1)[7:1007].view(10, 100),
    lambda x: x.t().unsqueeze(1).expand(1000, 4, 1000),
    lambda x: x.view(-1).split(300_000),
    lambda x: x.unbind(1)[5],
)


def on_a_device() -> dict[str, Any]:
    import torch
    from torch.nn import functional

    from megatron_grow.cost.devices import DEVICES
    from megatron_grow.rehearsal import compiled, cuda
    from megatron_grow.rehearsal.half_fake import HalfFake

    mode, found = HalfFake(), dict[str, Any]()
    cuda.install(DEVICES["h100"], mode.wait)
    with mode:
        real = torch.arange(6.0).view(2, 3)
        found["real"] = (real * 2).sum().item()
        weight = torch.ones(3, 1000, device="cuda", requires_grad=True)
        x = real.cuda()
        with mode.memory.peak() as peak:
            loss = (x @ weight).square().sum()
            loss.backward()
        found["gradient"] = (weight.grad.device.type, tuple(weight.grad.shape))
        found["weight"] = mode.memory.parts["other"] >= 4 * 2 * 3000
        found["peak"] = peak.total
        found["items"] = (loss.item(), bool(loss > 0), x.long()[0, 0].item())
        found["host"] = (x.cpu() * 3 + 1).tolist()
        x.copy_(real, non_blocking=True)
        x.to("cpu", non_blocking=True)
        torch.cuda.current_stream().synchronize()
        found["waits"] = dict(mode.host_waits)
        try:
            x + torch.ones(2, 3)
        except RuntimeError as error:
            found["mix"] = str(error)
        table = torch.ones(1000, 1000, device="cuda", requires_grad=True)
        with mode.memory.peak() as peak:
            (x[:, :1] @ table[:1] + x[:, 1:2] @ table[1:2]).sum().backward()
        found["twice"] = peak.total - mode.memory.parts.total()
        kernel = compiled._alone(lambda x, y: (x.exp() + y).sin() * x, mode.memory)
        before = mode.memory.parts.total()
        with mode.memory.peak() as peak:
            made = kernel(table, table.detach())
            found["kernel"] = peak.total - before
            made.sum().backward()
        found["kernel backward"] = peak.total - before
        del made
        before = mode.memory.parts.total()
        summed = compiled._alone(lambda x, y: x + y, mode.memory)(table * 2, table * 3)
        found["sum"] = mode.memory.parts.total() - before
        del summed
        dropped = compiled._alone(lambda x: functional.dropout(x, 0.5), mode.memory)(table * 2)
        found["dropout"] = mode.memory.parts.total() - before
        del dropped
        kept = mode.memory.parts.total()
        found["views"] = [
            [
                (part.shape, part.stride(), part.storage_offset(), part.device.type)
                for part in (made if isinstance(made, (list, tuple)) else [made])
            ]
            for source in (table.detach(), torch.zeros(1000, 1000))
            for made in (view(source) for view in VIEWS)
        ]
        found["kept"] = mode.memory.parts.total() - kept
        try:
            table.detach().view(999, 1001)
        except RuntimeError as error:
            found["no view"] = str(error)
        del table
        del x, loss, weight
    found["left"] = mode.memory.parts.total()
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return apart(on_a_device)


def test_what_is_on_the_cpu_is_real(found: dict[str, Any]) -> None:
    assert found["real"] == 30.0


def test_autograd_runs_without_memory(found: dict[str, Any]) -> None:
    assert found["gradient"] == ("cuda", (3, 1000))


def test_a_number_is_one_and_a_copy_is_zeros(found: dict[str, Any]) -> None:
    assert found["items"] == (1.0, True, 1)
    assert found["host"] == [[1.0] * 3] * 2


def test_each_time_that_the_host_waits_is_counted(found: dict[str, Any]) -> None:
    # real.cuda(), loss.item(), bool(), x.item(), x.cpu(), the stream
    assert sum(found["waits"].values()) == 6


def test_a_mix_of_devices_raises(found: dict[str, Any]) -> None:
    assert "cuda" in found["mix"] and "cpu" in found["mix"]


def test_views_are_those_of_real_tensors(found: dict[str, Any]) -> None:
    def shapes(views: list) -> list:
        return [[part[:3] for part in parts] for parts in views]

    fake, real = found["views"][: len(VIEWS)], found["views"][len(VIEWS) :]
    assert shapes(fake) == shapes(real)
    assert {device for parts in fake for *_, device in parts} == {"cuda"}
    assert found["kept"] == 0
    assert "invalid for input of size 1000000" in found["no view"]


def test_gradients_of_one_tensor_are_added_in_place(found: dict[str, Any]) -> None:
    """As autograd does where no mode looks on: of 4 MB each, two are there, and one stays."""
    assert found["twice"] < 1.5 * 4_000_000


def test_a_compiled_kernel_keeps_its_arguments_alone(found: dict[str, Any]) -> None:
    """Its result, of 4 MB; then its gradient, beside that of the table from before."""
    assert found["kernel"] == pytest.approx(4_000_256, abs=512)
    assert found["kernel backward"] <= 3 * 4_000_256 + 1024


def test_a_compiled_kernel_keeps_no_more_than_the_plain_function(found: dict[str, Any]) -> None:
    """Beside its result, of 4 MB: of a sum nothing; of dropout a byte of each entry."""
    assert found["sum"] == pytest.approx(4_000_256, abs=512)
    assert found["dropout"] == pytest.approx(5_000_256, abs=1024)


def test_memory_is_counted_until_nothing_refers_to_it(found: dict[str, Any]) -> None:
    # x, the weight, x @ weight (2 x 1000), its square, the loss; then 2 (x @ weight) and a gradient
    # of the weight: while it is made, x, weight, product, gradients of the product and the weight
    rounded = {24: 512, 12_000: 12_288, 8_000: 8_192, 4: 512}
    least = rounded[24] + 2 * rounded[12_000] + 2 * rounded[8_000]
    assert least <= found["peak"] <= least + 2 * rounded[8_000] + 4 * rounded[4]
    assert found["weight"]
    assert found["left"] == 0


def test_a_torch_that_is_built_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    shim.check()
    with monkeypatch.context() as patch:
        patch.setattr(shim, "_HOOKS", "of_another_version")
        with pytest.raises(UserError, match=r"of_another_version.*install the CPU build of torch"):
            shim.check()
    monkeypatch.setattr("torch.version.cuda", "13.0")
    with pytest.raises(UserError, match=r"built for GPUs.*install the CPU build of torch"):
        shim.check()
