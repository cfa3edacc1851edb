"""A place to run the command in."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.corpus import write_corpus


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a corpus and a run file that grows from 0 to 2 layers at step 10."""
    directory = tmp_path_factory.mktemp("run")
    prefix = write_corpus(directory)
    run = {
        "run": {"output_dir": "unset", "seed": 7},
        "model": {
            "num_layers": 2,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
        },
        "train": {
            "train_iters": 20,
            "global_batch_size": 4,
            "micro_batch_size": 1,
            "seq_length": 32,
            "log_interval": 1,
            "eval_interval": 10,
            "eval_iters": 1,
        },
        "optimizer": {"lr": 3e-3},
        "data": {"train_data_path": [prefix], "split": "60,40,0"},
        "checkpoint": {"save_interval": 5},
        "logging": {"tensorboard": False},
        "stages": [
            {"until": 0.5, "model": {"num_layers": 0}},
            {
                "grow": {"depth": "random"},
                "parallel": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
            },
        ],
    }
    (directory / "run.yaml").write_text(yaml.safe_dump(run))
    return directory
