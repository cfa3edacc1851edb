"""Operators of one's own in a file of growths, one of which looks at weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from megatron_grow.convert.synthetic import SyntheticReader, write
from tests.convert.toy import GPT, by_torch, command

FC1 = "decoder.layers.mlp.linear_fc1.weight"
FC2 = "decoder.layers.mlp.linear_fc2.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("source"), SyntheticReader(GPT), tensor_parallel=2)


def wider(fc1: torch.Tensor, fc2: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(layers, ffn, hidden) and (layers, hidden, ffn), with copies of the largest columns."""
    old = fc2.shape[2]
    norms = fc2.double().square().sum(1)
    order = norms.sort(dim=1, descending=True, stable=True)[1].tolist()
    index = [[*range(old), *units[: size - old]] for units in order]
    shares = [[1 / units.count(i) for i in units] for units in index]
    columns = torch.stack([layer[:, units] for layer, units in zip(fc2, index, strict=True)])
    return (
        torch.stack([layer[units] for layer, units in zip(fc1, index, strict=True)]),
        (columns.double() * torch.tensor(shares, dtype=torch.float64)[:, None]).float(),
    )


def test_two_growths_that_look_at_weights(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second sees what the first has made."""
    growths = [
        {"model": {"ffn_hidden_size": 44}, "grow": {"ffn": "extend.importance:Importance"}},
        {
            "model": {"ffn_hidden_size": 52, "num_layers": 6},
            "grow": {"ffn": {"operator": "extend.importance:Importance"}}
            | {"depth": "extend.mirror:Mirror"},
        },
    ]
    (tmp_path / "grow.yaml").write_text(yaml.safe_dump(growths))
    target = tmp_path / "grown"
    assert command("grow", source, target, "--grow", tmp_path / "grow.yaml", "--threads", 4) == 0
    said = capsys.readouterr().out
    assert "32 -> 44 ffn_hidden_size by extend.importance:Importance: keeps the function" in said
    assert "4 -> 6 layers by extend.mirror:Mirror, 44 -> 52 ffn_hidden_size by extend" in said
    before = by_torch(source)
    fc1, fc2 = wider(*wider(before[FC1], before[FC2], 44), 52)
    (checkpoint,) = target.glob("iter_*")
    after, layers = by_torch(checkpoint), [0, 1, 2, 3, 3, 2]
    assert torch.equal(after[FC1], fc1[layers])
    assert torch.equal(after[FC2], fc2[layers])


@pytest.mark.parametrize(
    ("grow", "said"),
    [
        ("{ffn: 'extend.nothing:Operator'}", "ffn=extend.nothing:Operator cannot be imported"),
        ("{ffn: 'extend.mirror:Mirror'}", "extend.mirror:Mirror is an operator of depth, not of"),
        ("{ffn: {operator: 'extend.importance:Importance', by: rows}}", "by is not an option"),
    ],
)
def test_refused(
    grow: str, said: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "grow.yaml"
    path.write_text(f"{{model: {{ffn_hidden_size: 44}}, grow: {grow}}}")
    assert command("grow", source, tmp_path / "x", "--grow", path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "grow.yaml.grow.ffn" in line and said in line
