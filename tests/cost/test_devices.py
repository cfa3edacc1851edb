"""The table of GPUs: data sheets' numbers, and the names that torch gives."""

from __future__ import annotations

import pytest

from megatron_grow.cost.devices import DEVICES, device, device_of_product
from megatron_grow.inputs.errors import UserError


@pytest.mark.parametrize(
    ("name", "sparse_tflops", "gigabytes", "link_both_ways"),
    [
        ("b200", 4500, 180, 1800),
        ("h200", 1979, 141, 900),
        ("h100", 1979, 80, 900),
        ("h100-pcie", 1513, 80, 128),
        ("a100", 624, 80, 600),
        ("a100-40", 624, 40, 600),
    ],
)
def test_data_sheets(name: str, sparse_tflops: float, gigabytes: float, link_both_ways: float):
    row = DEVICES[name]
    assert row.bf16 == sparse_tflops / 2 * 1e12
    assert row.memory == gigabytes * 1e9
    assert row.link == link_both_ways / 2 * 1e9


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GB200", "gb200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_product_names(product: str, name: str | None):
    assert device_of_product(product) == name


def test_unknown_device_names_the_nearest():
    with pytest.raises(UserError, match=r"^--gpu=h1000 is no GPU of the table; did you mean h100"):
        device("h1000", "--gpu")
