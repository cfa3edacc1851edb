"""``pretrain_progressive.py`` as a user meets it: runs, resumes, stops, and mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.corpus import write_corpus
from tests.train.command import launch, losses, rows, steps_saved


@pytest.fixture(scope="module")
def whole(workplace: Path) -> dict[int, float]:
    """The uninterrupted run."""
    code, output, errors = launch(workplace, "whole")
    assert code == 0, errors
    assert "grew from 0 to 2 layers" in output
    assert "TP1 PP1 DP2 -> TP2 PP1 DP1 SP" in output
    assert steps_saved(workplace, "whole") == [5, 10, 15, 20]
    return losses(workplace, "whole")


def test_metrics_rows(workplace: Path, whole: dict[int, float]) -> None:
    assert sorted(whole) == list(range(1, 21))
    assert whole[20] < 0.9 * whole[1]
    training = [row for row in rows(workplace, "whole") if "loss" in row]
    for row in training:
        assert row["consumed_tokens"] == row["step"] * 4 * 32
        assert row["num_layers"] == (0 if row["step"] <= 10 else 2)
        assert row["stage"] == (0 if row["step"] <= 10 else 1)
        assert row["tokens_per_second"] == pytest.approx(4 * 32 / row["step_time"])
        assert row["grad_norm"] > 0
    # 6 N for each token; N of the blocks is 0 before the growth
    assert training[9]["flops_block"] == 0
    embedding = (257 + 32) * 32 + 2 * 32  # tokens without padding, positions, final norm
    assert training[9]["flops_total"] == 10 * 128 * 6 * embedding
    validations = [row["step"] for row in rows(workplace, "whole") if "val_loss" in row]
    assert validations == [10, 20]
    (growth,) = [row for row in rows(workplace, "whole") if row.get("event") == "growth"]
    assert growth["step"] == 10
    assert growth["to_parameters"] > growth["from_parameters"] == embedding
    assert growth["val_loss_after"] != growth["val_loss_before"]


@pytest.mark.parametrize("step", [5, 10, 15])
def test_resume_gives_the_same_bits(workplace: Path, whole: dict[int, float], step: int) -> None:
    """Before the growth, at it, and after it; on the same layout."""
    name = f"resumed_{step}"
    shutil.copytree(workplace / "whole", workplace / name)
    checkpoints = workplace / name / "checkpoints"
    for later in {5, 10, 15, 20} - set(range(step + 1)):
        shutil.rmtree(checkpoints / f"iter_{later:07d}")
    (checkpoints / "latest_checkpointed_iteration.txt").write_text(str(step))
    code, output, errors = launch(workplace, name, "--checkpoint.load", "auto")
    assert code == 0, errors
    assert f"at step {step}" in output
    assert losses(workplace, name) == whole
    assert rows(workplace, name)[-1]["val_loss"] == rows(workplace, "whole")[-1]["val_loss"]


def test_resume_on_another_layout(workplace: Path, whole: dict[int, float]) -> None:
    """From two ranks to one, across the growth."""
    stages = [{"until": 0.5, "model": {"num_layers": 0}}, {"grow": {"depth": "random"}}]
    code, _, errors = launch(
        workplace,
        "other_layout",
        "--stages",
        json.dumps(stages),
        "--checkpoint.load",
        str(workplace / "whole" / "checkpoints" / "iter_0000005"),
        world_size=1,
    )
    assert code == 0, errors
    resumed = losses(workplace, "other_layout")
    assert sorted(resumed) == list(range(6, 21))
    assert resumed == pytest.approx({step: whole[step] for step in resumed}, rel=1e-5)


def test_stop_request_saves_and_resumes(workplace: Path, whole: dict[int, float]) -> None:
    code, output, errors = launch(workplace, "stopped", stop_at=12)
    assert code == 75, errors
    assert "--checkpoint.load auto" in output
    assert steps_saved(workplace, "stopped") == [5, 10, 12]
    code, _, errors = launch(workplace, "stopped", "--checkpoint.load", "auto")
    assert code == 0, errors
    assert losses(workplace, "stopped") == whole


def test_stages_may_be_left_out(workplace: Path) -> None:
    code, output, errors = launch(
        workplace,
        "fixed",
        "--stages",
        "[]",
        "--train.train_iters",
        "3",
        "--checkpoint.keep_last",
        "1",
        "--checkpoint.save_interval",
        "1",
    )
    assert code == 0, errors
    assert "grew" not in output
    assert steps_saved(workplace, "fixed") == [3]


SMALL = {"until": 0.5, "model": {"num_layers": 2}}
MISTAKES = {
    "options of samples that have none": (
        ["--data.options", "{masking: token}"],
        ["data.options.masking is not an option of gpt; known are none"],
    ),
    "layout that does not divide the world": (
        ["--stages", json.dumps([{"parallel": {"tensor_model_parallel_size": 4}}])],
        ["tensor_model_parallel_size=4", "2 ranks"],
    ),
    "layout that does not divide the heads": (
        [
            "--stages",
            json.dumps([{"parallel": {"tensor_model_parallel_size": 2}}]),
            "--model.num_attention_heads",
            "1",
        ],
        ["tensor_model_parallel_size=2", "num_attention_heads=1"],
    ),
    "pipeline that does not divide the layers": (
        [
            "--stages",
            json.dumps([{"parallel": {"pipeline_model_parallel_size": 2}}]),
            "--model.num_layers",
            "3",
        ],
        ["pipeline_model_parallel_size=2", "num_layers=3"],
    ),
    "chunks without a pipeline": (
        ["--parallel.virtual_pipeline_model_parallel_size", "2"],
        ["virtual_pipeline_model_parallel_size=2", "pipeline_model_parallel_size to be"],
    ),
    "stages out of order": (
        [
            "--stages",
            json.dumps(
                [
                    {"until": 0.8, "model": {"num_layers": 0}},
                    {"until": 0.5, "model": {"num_layers": 1}, "grow": {"depth": "random"}},
                    {"grow": {"depth": "random"}},
                ]
            ),
        ],
        ["stages[1].until=0.5", "after step 16"],
    ),
    "unknown operator": (
        [
            "--stages",
            json.dumps([SMALL, {"grow": {"depth": "doubling"}}]),
            "--model.num_layers",
            "4",
        ],
        ["stages[1].grow.depth='doubling'", "copying_stack"],
    ),
    "unknown option": (
        [
            "--stages",
            json.dumps([SMALL, {"grow": {"depth": {"operator": "random", "std": 1}}}]),
            "--model.num_layers",
            "4",
        ],
        ["stages[1].grow.depth.std"],
    ),
    "copies of nothing": (
        [
            "--stages",
            json.dumps(
                [{"until": 5, "model": {"num_layers": 0}}, {"grow": {"depth": "copying_stack"}}]
            ),
        ],
        ["copying_stack", "num_layers=0"],
    ),
    "unknown field": (["--train.train_itters", "5"], ["--train.train_itters"]),
    "unknown field of a stage": (
        [
            "--stages",
            json.dumps([{"until": 5, "model": {"layers": 0}}, {"grow": {"depth": "random"}}]),
        ],
        ["stages[0].model.layers", "num_layers"],
    ),
    "fewer layers": (
        [
            "--stages",
            json.dumps([{"until": 5, "model": {"num_layers": 4}}, {"grow": {"depth": "random"}}]),
        ],
        ["stages[1].model.num_layers=2", "4"],
    ),
    "batch that does not divide": (["--train.global_batch_size", "3"], ["global_batch_size=3"]),
    "wrong type": (["--train.train_iters", "many"], ["train.train_iters", "many"]),
    "missing dataset": (["--data.train_data_path", "[/nowhere/corpus]"], ["/nowhere/corpus"]),
    "vocabulary larger than the model's": (
        ["--model.vocab_size", "100"],
        ["vocab_size=100", "257"],
    ),
    "missing run file": (["--config", "/nowhere/run.yaml"], ["/nowhere/run.yaml"]),
    "missing checkpoint": (["--checkpoint.load", "/nowhere"], ["/nowhere"]),
    "sequence too long": (
        ["--train.seq_length", "64"],
        ["seq_length=64", "max_position_embeddings=32"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(workplace: Path, name: str) -> None:
    options, expected = MISTAKES[name]
    code, _, errors = launch(workplace, "mistake", *options)
    assert code == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors
    for text in expected:
        assert text in errors
    assert not (workplace / "mistake").exists(), "nothing is written"


def test_truncated_dataset(workplace: Path, tmp_path: Path) -> None:
    prefix = write_corpus(tmp_path)
    data = Path(f"{prefix}.bin")
    data.write_bytes(data.read_bytes()[:-100])
    code, _, errors = launch(workplace, "mistake", "--data.train_data_path", f"[{prefix}]")
    assert code == 2
    assert str(data) in errors and errors.count("\n") == 1


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_damaged_checkpoint(
    workplace: Path, whole: dict[int, float], tmp_path: Path, damage: str
) -> None:
    checkpoint = tmp_path / "iter_0000005"
    shutil.copytree(workplace / "whole" / "checkpoints" / checkpoint.name, checkpoint)
    chunk = next(checkpoint.glob("*.distcp"))
    if damage == "missing":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[:100])
    code, _, errors = launch(workplace, "mistake", "--checkpoint.load", str(checkpoint))
    assert code == 2
    assert str(chunk) in errors and damage in errors and errors.count("\n") == 1
    assert not (workplace / "mistake").exists()
