"""A run whose stages differ in length and batch, by the command: what it reads, counts, resumes."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megatron_grow.config.sections import DataSection
from megatron_grow.data.check import check_data
from megatron_grow.data.datasets import Datasets, build_datasets
from megatron_grow.data.samples import RunningText
from tests.corpus import EOD, write_corpus
from tests.distributed import run_ranks
from tests.train.command import losses, rows
from tests.train.jobs import read_by, run_all

LENGTH, BATCH, EVAL_ITERS, SEED = 32, 4, 3, 7
# Last step, layers, sequence length, global batch, micro-batch, layout.
STAGES = [
    (3, 0, 8, 8, 2, {}),
    (6, 1, 16, 6, 3, {"tensor_model_parallel_size": 2, "sequence_parallel": True}),
    (8, 2, LENGTH, BATCH, 1, {"pipeline_model_parallel_size": 2}),
]
TOKENS = [64, 128, 192, 288, 384, 480, 608, 736]
"""Consumed after each step: three steps of 8 x 8, three of 6 x 16, two of 4 x 32."""


def stages(parallel: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "until": until,
            "model": {"num_layers": layers},
            "train": {"seq_length": length, "global_batch_size": batch, "micro_batch_size": micro},
            "parallel": layout if parallel else {},
            **({"grow": {"depth": "random"}} if layers else {}),
        }
        for until, layers, length, batch, micro, layout in STAGES
    ]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    run = {
        "run": {"seed": SEED},
        "model": {
            "num_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "max_position_embeddings": 2 * LENGTH,
        },
        "train": {
            "train_iters": 8,
            "global_batch_size": BATCH,
            "seq_length": LENGTH,
            "log_interval": 1,
            "eval_interval": 2,
            "eval_iters": EVAL_ITERS,
        },
        "optimizer": {"lr": 3e-3},
        "data": {"train_data_path": [write_corpus(directory)], "split": "60,40,0"},
        "checkpoint": {"save_interval": 1},
        "logging": {"tensorboard": False},
        "stages": stages(),
    }
    (directory / "run.yaml").write_text(yaml.safe_dump(run))
    return directory


def command(directory: Path, name: str, *options: str) -> list[str]:
    """A command line that writes to ``name``."""
    output = str(directory / name)
    return ["--config", str(directory / "run.yaml"), "--run.output_dir", output, *options]


@pytest.fixture(scope="module")
def done(workplace: Path) -> list[list[tuple[int, str, dict[str, list]]]]:
    """The whole run and its continuations from every step, on two ranks; results by rank."""
    saved = workplace / "whole" / "checkpoints"
    commands = [command(workplace, "whole")]
    for step in range(1, 8):
        path = str(saved / f"iter_{step:07d}")
        options = ["--checkpoint.load", path, "--checkpoint.save_interval", "0"]
        options += ["--train.eval_interval", "100"]
        commands.append(command(workplace, f"from {step}", *options))
    other_batches = stages()
    other_batches[0]["train"]["global_batch_size"] = 16
    for name, options in {
        "other batch": ["--stages", json.dumps(other_batches), "--train.eval_iters", "6"],
        "other length": ["--train.seq_length", "64"],
    }.items():
        path = str(saved / f"iter_{4:07d}")
        commands.append(command(workplace, name, "--checkpoint.load", path, *options))
    return run_ranks(2, run_all, commands)


@pytest.fixture(scope="module")
def samples(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Datasets:
    """What a run of one length would read."""
    parts = check_data(
        DataSection(train_data_path=[str(workplace / "stdlib_text_document")], split="60,40,0"),
        seq_length=LENGTH,
        vocab_size=EOD + 1,
        evaluate=True,
    )
    return build_datasets(
        *parts,
        RunningText(LENGTH, SEED),
        train_samples=40,
        valid_samples=EVAL_ITERS * BATCH,
        cache_dir=tmp_path_factory.mktemp("cache"),
    )


def flat(dataset: Any, tokens: int) -> list[int]:
    return torch.cat([dataset[k]["tokens"] for k in range(tokens // LENGTH)]).tolist()


def test_it_reads_the_stream_of_a_run_of_one_length(done, samples: Datasets) -> None:
    results = [rank[0] for rank in done]
    assert [code for code, *_ in results] == [0, 0], results[0][1]
    assert read_by([seen for *_, seen in results], "train") == flat(samples.train, TOKENS[-1])


def test_every_evaluation_reads_the_same_tokens(workplace: Path, done, samples: Datasets) -> None:
    evaluated = [row for row in rows(workplace, "whole") if "val_loss" in row]
    assert [row["step"] for row in evaluated] == [2, 3, 4, 6, 8]
    times = len(evaluated) + 2  # and after each growth
    found = read_by([rank[0][2] for rank in done], "valid")
    assert found == times * flat(samples.valid, EVAL_ITERS * BATCH * LENGTH)


def test_rows_count_the_tokens_of_each_stage(workplace: Path, done) -> None:
    training = [row for row in rows(workplace, "whole") if "loss" in row]
    assert [row["consumed_tokens"] for row in training] == TOKENS
    width, vocabulary = 32, 257
    outside = (vocabulary + 2 * LENGTH) * width + 2 * width
    layer = 12 * width**2 + 13 * width
    total = block = 0
    for row, before, after in zip(training, [0, *TOKENS], TOKENS, strict=False):
        total += 6 * (after - before) * (outside + row["num_layers"] * layer)
        block += 6 * (after - before) * row["num_layers"] * layer
        assert (row["flops_total"], row["flops_block"]) == (total, block)
        assert row["tokens_per_second"] == pytest.approx((after - before) / row["step_time"])
    growths = [row for row in rows(workplace, "whole") if row.get("event") == "growth"]
    assert [(row["from_batch"], row["to_batch"]) for row in growths] == [
        ("8 x 8", "6 x 16"), ("6 x 16", "4 x 32")
    ]  # fmt: skip


def test_a_checkpoint_records_where_the_stream_goes_on(workplace: Path, done) -> None:
    for step, tokens in enumerate(TOKENS, start=1):
        path = workplace / "whole" / "checkpoints" / f"iter_{step:07d}"
        record = json.loads((path / "megatron_grow.json").read_text())
        assert (record["consumed_tokens"], record["consumed_samples"]) == (tokens, tokens // LENGTH)
        with torch.serialization.safe_globals([Namespace]):
            common = torch.load(path / "common.pt", weights_only=True)
        assert common["args"].consumed_train_samples == tokens // LENGTH


@pytest.mark.parametrize("step", range(1, 8))
def test_resume_from_every_step_gives_the_same_bits(
    workplace: Path, done, samples: Datasets, step: int
) -> None:
    whole = losses(workplace, "whole")
    assert len(set(whole.values())) == len(whole) == 8
    results = [rank[step] for rank in done]
    assert [code for code, *_ in results] == [0, 0], results[0][1]
    name = f"from {step}"
    assert losses(workplace, name) == {k: whole[k] for k in range(step + 1, 9)}
    assert rows(workplace, name)[-1]["val_loss"] == rows(workplace, "whole")[-1]["val_loss"]
    rest = read_by([seen for *_, seen in results], "train")
    assert rest == flat(samples.train, TOKENS[-1])[TOKENS[step - 1] :]


def test_one_rank_gives_the_same_losses(workplace: Path, done) -> None:
    options = ["--stages", json.dumps(stages(parallel=False))]
    [[(code, errors, _)]] = run_ranks(1, run_all, [command(workplace, "one rank", *options)])
    assert code == 0, errors
    assert losses(workplace, "one rank") == pytest.approx(losses(workplace, "whole"), rel=1e-5)


def test_a_checkpoint_of_another_stream_is_refused(workplace: Path, done) -> None:
    batch, length = done[0][8:]
    assert batch[0] == length[0] == 2
    assert (
        "consumed 288 tokens in 4 steps; with the stages as they are now it would be 480"
        in batch[1]
    )
    assert "train.seq_length=32" in length[1] and "train.seq_length=64" in length[1]
    for _, errors, _ in (batch, length):
        assert errors.startswith("error: checkpoint ") and errors.count("\n") == 1
    assert not (workplace / "other batch").exists()
