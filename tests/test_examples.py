"""The run files in ``examples/`` parse, and their stages fit the job that they name."""

import itertools
import os
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from megatron_grow.config.run import RunConfig, parse_run, to_yaml
from megatron_grow.cost.parameters import count_parameters
from megatron_grow.growth.plan import growth, initialisation
from megatron_grow.methods import methods_of
from megatron_grow.model.architectures import architecture_of, data_options_of
from megatron_grow.parametrization.table import parametrized
from tests.corpus import write_corpus
from tests.train.command import launch, rows

EXAMPLES = Path(__file__).parent.parent / "examples"
JOBS = {
    "quickstart": (2, 1024),
    "gpt2_124m": (8, 50257),
    "gpt2_7b": (64, 50257),
    "llama": (8, 32000),
    "compound": (8, 32000),
    "extend": (2, 1024),
    "grow_llama": (2, 1024),
    "bert_base": (8, 30522),
    "bert_quickstart": (2, 4096),
    "bert": (1, 512),
    "gpt": (1, 1024),
    "gpt_mid": (1, 1024),
    "gpt_124m": (1, 50257),
    "gpt_long": (1, 512),
    "gpt_vocab": (1, 8192),
    "when_to_grow": (1, 1024),
    "transfer": (1, 1024),
    "family": (1, 1024),
    "coordinate_check": (1, 257),
}
"""Ranks, and the size of the vocabulary."""
FILES = sorted(
    path
    for path in EXAMPLES.glob("**/*.yaml")
    if "run" in yaml.safe_load(path.read_text())  # others are of the converter
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_run_file(path: Path, tmp_path: Path) -> None:
    config = parse_run(["--config", str(path)])
    check_stages(config, *JOBS[path.parent.name])
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(to_yaml(config))
    assert parse_run(["--config", str(resolved)]) == config


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.glob("study/*/study.py")), ids=lambda path: path.parent.name
)
def test_the_runs_of_a_study(path: Path) -> None:
    study = runpy.run_path(str(path))["STUDY"]
    for name in study.variants:
        check_stages(study.config(name), *JOBS[path.parent.name])


def check_stages(config: RunConfig, world_size: int, vocabulary: int) -> None:
    """Raise what a run would refuse before it reads data."""
    config = parametrized(replace(config, model=replace(config.model, vocab_size=vocabulary)))
    stages = config.resolve(world_size)
    data_options_of(config.model, config.data)
    for stage in stages:
        architecture_of(stage.model).check(stage, config.train, f"stages[{stage.index}]")
    depth = config.model.num_layers
    methods_of(stages[0], config, initialisation(stages[0].model, depth, seed=1))
    for before, stage in itertools.pairwise(stages):
        plan = growth(before.model, stage.model, stage.grow, target_depth=depth, seed=1)
        methods_of(stage, config, plan)


@pytest.mark.parametrize("script", sorted(EXAMPLES.rglob("*.sh")), ids=lambda script: script.stem)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_7b_example_is_the_published_size() -> None:
    config = parse_run(["--config", str(EXAMPLES / "gpt2_7b" / "run.yaml")])
    model = replace(config.model, vocab_size=50_304)  # as the paper counts
    assert count_parameters(model, biases=False) == 6_952_823_808
    assert count_parameters(replace(model, num_layers=0), biases=False) == 157_682_688


def test_the_bert_example_is_the_published_size() -> None:
    """That of transformers' ``BertForPreTraining(BertConfig())``."""
    config = parse_run(["--config", str(EXAMPLES / "bert_base" / "run.yaml")])
    assert count_parameters(replace(config.model, vocab_size=30_522)) == 110_106_428


def test_growing_someone_elses_llama(tmp_path: Path) -> None:
    """The whole script: transformers, the converter, torchrun, the converter, transformers."""
    root = EXAMPLES.parent
    # It writes beside itself, in runs/, where the user's own may be.
    shutil.copytree(EXAMPLES / "grow_llama", tmp_path / "examples/grow_llama")
    for needed in ("tools", "pretrain_progressive.py"):
        (tmp_path / needed).symlink_to(root / needed)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(root),
        "TOY_STEPS": "15",
        "TRAIN_ITERS": "10",
    }
    done = subprocess.run(
        ["bash", tmp_path / "examples/grow_llama/grow.sh"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    same = [line for line in done.stdout.splitlines() if "the same function" in line]
    assert len(same) == 2 and "not the same" not in done.stdout, done.stdout
    assert "def __init__(self" in done.stdout.split("== Export")[1]


def test_everything_of_ones_own(tmp_path: Path) -> None:
    """Architecture, optimizer, operators, method and rule by import path, in one run."""
    prefix = write_corpus(tmp_path)
    shutil.copy(EXAMPLES / "extend" / "run.yaml", tmp_path)
    corpus = f"--data.train_data_path=[{prefix}]", f"--data.valid_data_path=[{prefix}]"
    options = (*corpus, "--data.tokenizer=bytes", "--train.train_iters=60")
    code, said, errors = launch(tmp_path, "whole", *options)
    assert code == 0, errors
    found = rows(tmp_path, "whole")
    (growth_row,) = (row for row in found if row.get("event") == "growth")
    assert "3 -> 6 layers by extend.mirror:Mirror" in growth_row["summary"]
    assert "128 -> 192 ffn_hidden_size by extend.importance:Importance" in growth_row["summary"]
    (end,) = (row for row in found if row.get("event") == "stage_end")
    assert f"step {end['last_step']}" in said
    losses = [row["loss"] for row in found if "loss" in row]
    assert losses[-1] < 0.8 * losses[0]
