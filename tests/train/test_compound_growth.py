"""A BERT that grows in depth, width and length, from a run file to its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_grow.convert.command import main as convert
from tests.data.corpora import write_ids
from tests.train.command import launch, losses, rows

WORDS = 200
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(WORDS))]
FIRST = {"num_layers": 2, "ffn_hidden_size": 16, "options": {"pool_size": 4}}
SECOND = {"num_layers": 4, "ffn_hidden_size": 16, "options": {"pool_size": 2}}
STAGES: list[dict[str, Any]] = [
    {"until": 4, "model": FIRST, "train": {"seq_length": 16, "global_batch_size": 8}},
    {
        "until": 8,
        "model": SECOND,
        "grow": {"recipe": "compound_grow", "optimizer_state": "carry"},
    },
    {"grow": {"recipe": "compound_grow"}, "rewarmup_iters": 2},
]
TP2 = [
    *("--parallel.tensor_model_parallel_size", "2"),
    *("--parallel.sequence_parallel", "true"),
]
PP2 = ["--parallel.pipeline_model_parallel_size", "2"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of sentences, and a run file of three stages of four steps, the first of which has
    shorter samples besides."""
    directory = tmp_path_factory.mktemp("compound")
    (directory / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    draw = np.random.default_rng(3)
    sentences, lengths = [int(n) for n in draw.integers(3, 7, 40)], []
    for count in sentences:
        lengths += [int(n) for n in draw.integers(4, 12, count)]
    ids = len(VOCABULARY) - WORDS + draw.integers(0, WORDS, sum(lengths)) // 3
    prefix = write_ids(directory / "text_sentence", ids, lengths, sentences)
    run = {
        "run": {"output_dir": "unset", "seed": 7},
        "model": {
            "architecture": "bert",
            "num_layers": 8,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "ffn_hidden_size": 64,
            "max_position_embeddings": 32,
            "make_vocab_size_divisible_by": 8,
        },
        "train": {
            "train_iters": 12,
            "global_batch_size": 4,
            "micro_batch_size": 1,
            "seq_length": 32,
            "log_interval": 1,
            "eval_interval": 4,
            "eval_iters": 1,
        },
        "optimizer": {"lr": 3e-3},
        "data": {
            "train_data_path": [prefix],
            "split": "60,40,0",
            "tokenizer": str(directory / "vocab.txt"),
        },
        "checkpoint": {"save_interval": 4, "load": "auto"},
        "logging": {"tensorboard": False},
        "stages": STAGES,
    }
    (directory / "run.yaml").write_text(yaml.safe_dump(run))
    return directory


@pytest.fixture(scope="module")
def whole(workplace: Path) -> dict[int, float]:
    """Losses of the run on two data-parallel ranks, from start to end; what it said is checked."""
    code, output, errors = launch(workplace, "whole")
    assert code == 0, errors
    assert "2 -> 4 layers by copying_stack; pool_size: 4 -> 2 tokens in a place" in output
    assert "16 -> 64 ffn_hidden_size by hypercloning; pool_size: 2 -> 1" in output
    return losses(workplace, "whole")


def test_every_layout_and_a_stop_in_every_stage(workplace: Path, whole: dict[int, float]) -> None:
    """Stopped in each stage, and resumed on another layout than that which wrote."""
    for stop_at, layout in ((2, TP2), (6, PP2), (10, TP2), (None, PP2)):
        code, _, errors = launch(workplace, "stopped", *layout, stop_at=stop_at)
        assert code == (75 if stop_at else 0), errors
    found = losses(workplace, "stopped")
    assert sorted(found) == sorted(whole) == list(range(1, 13))
    for step, loss in whole.items():
        assert found[step] == pytest.approx(loss, rel=2e-5), step
    growths = [row for row in rows(workplace, "stopped") if row.get("event") == "growth"]
    assert [row["step"] for row in growths] == [4, 8]


def test_the_converter_grows_as_the_run_does(workplace: Path, whole: dict[int, float]) -> None:
    """From what the first stage saved: the second stage's losses, to the bit."""
    saved, grown = workplace / "whole" / "checkpoints" / "iter_0000004", workplace / "grown"
    grow = workplace / "grow.yaml"
    grow.write_text(yaml.safe_dump({"model": SECOND, "grow": STAGES[1]["grow"]}))
    assert convert(["grow", str(saved), str(grown), "--grow", str(grow)]) == 0
    on = [
        *("--checkpoint.load", str(grown), "--checkpoint.start", "continue"),
        *("--stages", json.dumps([{"until": 8, "model": SECOND}, STAGES[2]])),
    ]
    code, _, errors = launch(workplace, "on", *on)
    assert code == 0, errors
    found = losses(workplace, "on")
    assert [found[step] for step in (5, 6, 7, 8)] == [whole[step] for step in (5, 6, 7, 8)]
