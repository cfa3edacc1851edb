"""Random mutations of a good run file: a run that can begin, or one line and exit code 2."""

from __future__ import annotations

import copy
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_grow.train import entry
from tests.corpus import write_corpus

MUTATIONS = int(os.environ.get("MUTATIONS", "250"))
"""More by hand: ``MUTATIONS=1000 pytest tests/train/test_mutations.py``."""

VALUES: list[Any] = [
    None, True, -1, 0, 1, 3, 7, 2**31, 2**63, 10**30, 10_000_000, -0.5, 0.5, 1.0, 1.5, 1e300,
    float("nan"), float("inf"), "", " ", "x", "1e-3", "auto", "random", "\u2603", "\x07", "a\nb",
    "a\0b", "../../..", "/dev/null/x", "/proc/self/mem", "x" * 5000, [], [1], ["a", ["b"]], [0.3],
    {}, {"a": 1}, {"operator": "random"}, {"operator": ["x"]}, [[]], [None],
]  # fmt: skip

NEAR = (
    lambda x: -x,
    lambda x: 0 * x,
    lambda x: x + 1,
    lambda x: 2 * x,
    lambda x: x // 2,
    lambda x: 1000 * x,
    lambda x: 10**6 * x,
    lambda x: 10**9 * x,
    lambda x: 2**31 - 1,
)
"""What a number may become and still be one."""

GOOD: dict[str, Any] = {
    "run": {"name": "good", "seed": 7},
    "model": {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "ffn_hidden_size": 64,
        "max_position_embeddings": 32,
        "position_embedding_type": "rope",
        "rotary_percent": 1.0,
        "normalization": "RMSNorm",
        "activation": "swiglu",
        "hidden_dropout": 0.1,
        "layernorm_epsilon": 1e-5,
    },
    "parallel": {"bucket_size": 1000, "tensor_model_parallel_size": 1},
    "train": {
        "train_iters": 20,
        "global_batch_size": 4,
        "micro_batch_size": 1,
        "seq_length": 32,
        "precision": "fp32",
        "eval_interval": 10,
        "eval_iters": 1,
    },
    "optimizer": {"optimizer": "adam", "lr": 3e-3, "min_lr": 0.0, "adam_beta1": 0.9},
    "schedule": {"lr_decay_style": "WSD", "lr_warmup_fraction": 0.1},
    "data": {"split": "60,40,0", "num_workers": 0},
    "checkpoint": {"save_interval": 5, "keep_last": 2, "load": None},
    "logging": {"tensorboard": False},
    "stages": [
        {"until": 0.5, "model": {"num_layers": 1, "ffn_hidden_size": 32}, "rewarmup_iters": 0},
        {"grow": {"depth": "copying_stack", "ffn": {"operator": "fpi", "seed": 3}}},
    ],
}


def places(node: Any, path: tuple = ()) -> list[tuple]:
    """Paths of all entries of nested dictionaries and lists."""
    entries = node.items() if isinstance(node, dict) else enumerate(node)
    found = []
    for key, value in entries:
        found.append((*path, key))
        if isinstance(value, (dict, list)):
            found += places(value, (*path, key))
    return found


def mutated(dice: random.Random, good: dict) -> str:
    """The text of a run file in which one or two things are wrong, or look so."""
    run = copy.deepcopy(good)
    for _ in range(dice.choice((1, 1, 2))):
        *path, last = dice.choice(places(run))
        node = run
        for key in path:
            node = node[key]
        action = dice.choice(("near", "near", "near", "value", "value", "rename", "nest", "add"))
        if action == "near" and isinstance(node[last], (int, float)):
            node[last] = dice.choice(NEAR)(node[last])
        elif action == "value" or isinstance(node, list):
            node[last] = dice.choice(VALUES)
        elif action == "rename":
            node[dice.choice((last[:-1], f"{last}s", last.upper(), "\u00e9"))] = node.pop(last)
        elif action == "nest":
            node[last] = {last: node[last]}
        else:
            node[dice.choice(("x", "config", "name"))] = dice.choice(VALUES)
    text = yaml.safe_dump(run, allow_unicode=True)
    lines = text.splitlines()
    spot = dice.randrange(len(lines))
    action = dice.choice(("none",) * 8 + ("twice", "tab", "cut", "indent", "letter"))
    if action == "twice":
        lines.insert(spot, lines[spot])
    elif action == "tab":
        lines[spot] = "\t" + lines[spot]
    elif action == "cut":
        return text[: dice.randrange(len(text))]
    elif action == "indent":
        lines[spot] = "   " + lines[spot]
    elif action == "letter":
        lines[spot] = lines[spot][:3] + dice.choice("{[&*!%@`\"'\ufeff\u2028") + lines[spot][3:]
    return "\n".join(lines)


@pytest.fixture
def preflight(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list]:
    """The command as it is, up to where a run would begin."""
    import torch.distributed as dist

    from megatron_grow.train.preflight import check, prepare

    began: list[Any] = []
    monkeypatch.setattr(entry, "_train", lambda config: began.append(prepare(check(config))) or 0)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.chdir(tmp_path)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield began
    dist.destroy_process_group()


def test_one_line_or_a_run(
    preflight: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    good = copy.deepcopy(GOOD)
    good["data"]["train_data_path"] = [write_corpus(corpus)]
    good["run"]["output_dir"] = str(tmp_path / "out")
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(good))
    assert entry.main(["--config", str(path)]) == 0, capsys.readouterr().err
    before = sorted(tmp_path.rglob("*"))
    dice, refused = random.Random(2026), 0
    for number in range(MUTATIONS):
        text = mutated(dice, good)
        path.write_text(text, encoding="utf-8")
        began = len(preflight)
        code = entry.main(["--config", str(path)])
        output, errors = capsys.readouterr()
        assert output == "", (number, output)
        if code == 0:
            assert len(preflight) == began + 1
        else:
            refused += 1
            assert code == 2, (number, text)
            assert errors.startswith("error: ") and errors.count("\n") == 1, (number, text, errors)
            assert errors[:-1].isprintable() and len(errors) < 2100, (number, errors)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"
    assert refused > MUTATIONS / 2
