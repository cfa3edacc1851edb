"""Twins of runs whose cost is counted by hand, or published."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from megatron_grow.config.run import RunConfig, parse_run, to_run_file
from megatron_grow.inputs.errors import UserError
from megatron_grow.report.twin import ends_of, twin_of

ROOT = Path(__file__).parents[2]
# Embedding 300 x 16, final norm 16: 4,816 parameters without layers. A layer: QKV 3 x 256,
# projection 256, MLP 2 x 1,024, two norms of 16: 3,104. With two layers 11,024.
RUN_FILE = """
run: {name: books, output_dir: runs/books}
model: {num_layers: 2, hidden_size: 16, num_attention_heads: 2, ffn_hidden_size: 64,
  vocab_size: 300, max_position_embeddings: 32, position_embedding_type: rope,
  normalization: RMSNorm, add_bias_linear: false}
train: {train_iters: 1000, seq_length: 32, global_batch_size: 8}
schedule: {lr_warmup_fraction: 0.05, lr_wsd_decay_fraction: 0.2}
checkpoint: {save: runs/elsewhere, load: auto, save_interval: 50}
parallel: {pipeline_model_parallel_size: 2}
stages:
  - {until: 0.8, model: {num_layers: 0}, parallel: {pipeline_model_parallel_size: 1}}
  - grow: {depth: random}
    parallel: {tensor_model_parallel_size: 2}
    methods: [{name: warm_up_new, iters: 10}]
    lr_multiplier: 0.5
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN_FILE)
    return path


def parsed(path: Path, *overrides: str) -> RunConfig:
    return parse_run(["--config", str(path), *overrides])


def test_its_length_by_hand(run_file: Path) -> None:
    config = parsed(run_file)
    twin = twin_of(config, "flops")
    # (800 x 4,816 + 200 x 11,024) / 11,024 = 549.5 steps; in layers 200 of 1,000 have any
    assert twin.config.train.train_iters == 549
    assert twin.grown.flops == {
        "total": 6 * 256 * (800 * 4816 + 200 * 11024),
        "blocks": 6 * 256 * 200 * 6208,
    }
    assert twin.cost.flops == {"total": 6 * 256 * 549 * 11024, "blocks": 6 * 256 * 549 * 6208}
    assert twin_of(config, "flops", part="blocks").config.train.train_iters == 200
    assert twin_of(config, "steps").config.train.train_iters == 1000
    # Half the tokens in a step of the small stage: 800 x 128 + 200 x 256 of 256 a step.
    short = replace(config.stages[0], train={"seq_length": 16})
    less = replace(config, stages=[short, config.stages[1]])
    assert twin_of(less, "tokens").config.train.train_iters == 600
    assert twin_of(less, "tokens").grown.tokens == 800 * 128 + 200 * 256


@pytest.mark.parametrize(("layers", "share"), [(0, 0.2181), (1, 0.2312)])
def test_published_shares_of_7b(layers: int, share: float) -> None:
    """Bu 2025: 157.68 and 270.94 of 6,952.8 million parameters until 0.8, the whole model."""
    config = parsed(ROOT / "examples/gpt2_7b/run.yaml")
    config = replace(
        config,
        model=replace(config.model, vocab_size=50304),
        data=replace(config.data, tokenizer="bytes", vocab_file=None, merge_file=None),
        stages=[replace(config.stages[0], model={"num_layers": layers}), config.stages[1]],
    )
    steps = twin_of(config, "flops").config.train.train_iters
    assert steps / config.train.train_iters == pytest.approx(share, abs=1e-4)
    in_layers = twin_of(config, "flops", part="blocks").config.train.train_iters
    assert in_layers == 20_000 + layers * 80_000 // 60


def test_what_stays_and_what_goes(run_file: Path) -> None:
    config = parsed(run_file)
    twin = twin_of(config, "flops").config
    assert twin.run.output_dir == "runs/books_equal_flops" and twin.run.seed == config.run.seed
    assert twin.stages == [] and twin.checkpoint.save is None and twin.checkpoint.load == "auto"
    assert twin.parallel == replace(config.parallel, tensor_model_parallel_size=2)
    # Warm-up and decay are shares of its own length.
    for section in ("model", "schedule", "optimizer", "data"):
        assert getattr(twin, section) == getattr(config, section)
    assert replace(twin.train, train_iters=1000) == config.train


def test_rates_of_a_shorter_run(run_file: Path) -> None:
    """Steps of a schedule shrink as the run does: 549 of 1,000 steps."""
    config = parsed(
        run_file,
        *("--schedule.lr_decay_iters", "2000", "--schedule.cooldown_iters", "100"),
        *("--optimizer.lr", "0.004", "--optimizer.muon_lr", "0.02"),
    )
    config = replace(config, stages=[config.stages[0], replace(config.stages[1], lr=0.001)])
    twin = twin_of(config, "flops").config
    assert (twin.schedule.lr_decay_iters, twin.schedule.cooldown_iters) == (1098, 55)
    # The target's peak is a quarter of the small model's.
    assert (twin.optimizer.lr, twin.optimizer.muon_lr) == (0.001, 0.005)
    assert twin_of(config, "steps").config.schedule == config.schedule


def test_what_it_begins_from_goes_and_has_a_cost_that_is_not_known(run_file: Path) -> None:
    grown = replace(
        parsed(run_file),
        checkpoint=replace(parsed(run_file).checkpoint, initial="runs/small", load=None),
    )
    with pytest.raises(UserError, match=r"^checkpoint: what runs/small has cost is not in this"):
        twin_of(grown, "flops")
    assert twin_of(grown, "steps").config.checkpoint.initial is None


def test_a_rule_needs_the_run_that_it_ended(run_file: Path, tmp_path: Path) -> None:
    config = parsed(run_file)
    until = {"rule": "loss_below", "loss": 3.0, "at_most": 0.8}
    ruled = replace(config, stages=[replace(config.stages[0], until=until), config.stages[1]])
    with pytest.raises(UserError, match=r"^stages\[0\]\.until: loss_below decides .* --run$"):
        twin_of(ruled, "flops")
    rows = [
        {"step": 500, "loss": 3.0},
        {"step": 500, "stage": 0, "event": "stage_end", "last_step": 500, "reason": "loss_below"},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    # (500 x 4,816 + 500 x 11,024) / 11,024
    assert twin_of(ruled, "flops", ends=ends_of(tmp_path)).config.train.train_iters == 718
    with pytest.raises(UserError, match=r"the stage ended after step 900 .* cannot end there"):
        twin_of(ruled, "flops", ends={0: 900})


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples").glob("**/run.yaml")), ids=lambda path: path.parent.name
)
def test_a_run_file_that_is_written_parses_back(path: Path, tmp_path: Path) -> None:
    config = parsed(path)
    written = tmp_path / "written.yaml"
    written.write_text(to_run_file(config))
    assert asdict(parsed(written)) == asdict(config)
    assert written.read_text().count("\n") < 60, "what is as by default is left out"


def test_command_line(run_file: Path, tmp_path: Path) -> None:
    tool = [sys.executable, str(ROOT / "tools" / "twin.py"), str(run_file), "--equal", "flops"]

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [*tool, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=600)

    output = tmp_path / "new" / "twin.yaml"
    done = run("-o", output, "--train.train_iters", 2000, "--run.seed", 3)
    assert done.returncode == 0, done.stderr
    heading = output.read_text().splitlines()
    assert "of equal FLOPs of the whole model" in heading[0]
    assert "2,000 steps" in heading[2] and "1,099 steps" in heading[3]
    twin = parsed(output)
    assert (twin.train.train_iters, twin.run.seed, twin.stages) == (1099, 3, [])

    printed = run("--flops", "blocks")
    assert yaml.safe_load(printed.stdout)["train"]["train_iters"] == 200
    wrong = run("--trian.train_iters", 5)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
    assert wrong.stderr.startswith("error: --trian.train_iters is not an option")
