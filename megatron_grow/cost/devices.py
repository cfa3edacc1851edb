"""What GPUs can do, as their makers' data sheets say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.names import nearest


@dataclass(frozen=True)
class Device:
    """One kind of GPU and the machine that it comes in.

    Data sheets give arithmetic with sparsity, twice what dense matrices get, and links in both
    directions together; here stand the dense peak and one direction.
    """

    product: tuple[str, ...]
    """Words of what ``torch.cuda.get_device_name`` gives, in small letters."""
    memory: float
    """Bytes. An H100 shows 79 GiB to a process, 6 % more than the 80e9 bytes of its data sheet:
    those are left to the CUDA context and to NCCL's buffers."""
    bf16: float
    """Peak of dense bf16 matrix products, FLOPs per second."""
    memory_bandwidth: float
    """Bytes per second."""
    link: float
    """Between GPUs of one node, bytes per second in each direction, for each GPU."""
    gpus_per_node: int
    """That ``link`` connects."""
    network: float | None
    """Between nodes, bytes per second in each direction, for each GPU; of the maker's own machine.
    None: there is none that says."""
    source: str


_HGX = "DGX H100/H200 data sheet: 8 GPUs, a ConnectX-7 of 400 Gb/s for each"
_PCIE_5 = "PCIe Gen5 x16, 128 GB/s; NVLink bridges, which join pairs, are not counted"

DEVICES: Mapping[str, Device] = {
    "gb200": Device(
        product=("gb200",),
        memory=186e9,
        bf16=2500e12,
        memory_bandwidth=8e12,
        link=900e9,
        gpus_per_node=72,
        network=50e9,
        source="GB200 NVL72 data sheet: 360 PFLOPS with sparsity, 13.4 TB, 576 TB/s and NVLink of "
        "130 TB/s for 72 GPUs; a ConnectX-7 of 400 Gb/s for each",
    ),
    "b200": Device(
        product=("b200",),
        memory=180e9,
        bf16=2250e12,
        memory_bandwidth=8e12,
        link=900e9,
        gpus_per_node=8,
        network=50e9,
        source="DGX B200 data sheet: 1,440 GB, 64 TB/s and NVLink of 14.4 TB/s for 8 GPUs, a "
        "ConnectX-7 of 400 Gb/s for each; HGX B200: 36 PFLOPS with sparsity for 8 GPUs",
    ),
    "h200-nvl": Device(
        product=("h200", "nvl"),
        memory=141e9,
        bf16=835.5e12,
        memory_bandwidth=4.8e12,
        link=64e9,
        gpus_per_node=8,
        network=None,
        source=f"H200 data sheet, NVL: 1,671 TFLOPS with sparsity; {_PCIE_5}",
    ),
    "h200": Device(
        product=("h200",),
        memory=141e9,
        bf16=989.5e12,
        memory_bandwidth=4.8e12,
        link=450e9,
        gpus_per_node=8,
        network=50e9,
        source=f"H200 data sheet, SXM: 1,979 TFLOPS with sparsity, NVLink of 900 GB/s; {_HGX}",
    ),
    "h100-nvl": Device(
        product=("h100", "nvl"),
        memory=94e9,
        bf16=835.5e12,
        memory_bandwidth=3.9e12,
        link=64e9,
        gpus_per_node=8,
        network=None,
        source=f"H100 data sheet, NVL: 1,671 TFLOPS with sparsity; {_PCIE_5}",
    ),
    "h100-pcie": Device(
        product=("h100", "pcie"),
        memory=80e9,
        bf16=756.5e12,
        memory_bandwidth=2e12,
        link=64e9,
        gpus_per_node=8,
        network=None,
        source=f"H100 PCIe data sheet: 1,513 TFLOPS with sparsity; {_PCIE_5}",
    ),
    "h100": Device(
        product=("h100",),
        memory=80e9,
        bf16=989.5e12,
        memory_bandwidth=3.35e12,
        link=450e9,
        gpus_per_node=8,
        network=50e9,
        source=f"H100 data sheet, SXM: 1,979 TFLOPS with sparsity, NVLink of 900 GB/s; {_HGX}",
    ),
    "a100-40": Device(
        product=("a100", "40gb"),
        memory=40e9,
        bf16=312e12,
        memory_bandwidth=1.555e12,
        link=300e9,
        gpus_per_node=8,
        network=25e9,
        source="A100 data sheet, 40 GB SXM: NVLink of 600 GB/s; DGX A100: 8 GPUs, a ConnectX-6 of "
        "200 Gb/s for each",
    ),
    "a100": Device(
        product=("a100",),
        memory=80e9,
        bf16=312e12,
        memory_bandwidth=2.039e12,
        link=300e9,
        gpus_per_node=8,
        network=25e9,
        source="A100 data sheet, 80 GB SXM: NVLink of 600 GB/s; DGX A100: 8 GPUs, a ConnectX-6 of "
        "200 Gb/s for each",
    ),
    "l40s": Device(
        product=("l40s",),
        memory=48e9,
        bf16=362.05e12,
        memory_bandwidth=864e9,
        link=32e9,
        gpus_per_node=8,
        network=None,
        source="L40S data sheet: 362.05 TFLOPS dense, PCIe Gen4 x16 of 64 GB/s",
    ),
}
"""By the name that a command line gives. Where the words of one are among those of another, the
longer row stands first."""


def device(name: str, where: str) -> Device:
    """The device called ``name``.

    Args:
        name: of a row of the table.
        where: begins the message of an error.

    Raises:
        UserError: there is no such row.
    """
    if name not in DEVICES:
        raise UserError(f"{where}={name} is no GPU of the table; {nearest(name, DEVICES)}")
    return DEVICES[name]


def device_of_product(product: str) -> str | None:
    """Name of the row for what ``torch.cuda.get_device_name`` gives.

    Args:
        product: for example ``NVIDIA H100 80GB HBM3``.

    Returns:
        None where no row is for it, or where it is a part of a GPU (MIG).
    """
    words = set(re.findall(r"[a-z0-9]+", product.lower()))
    if "mig" in words:
        return None
    return next((name for name, row in DEVICES.items() if words.issuperset(row.product)), None)
