from __future__ import annotations

import json
import math
import resource
from pathlib import Path

import pytest

from megatron_grow.inputs.errors import UserError
from megatron_grow.train.metrics import MetricsLog
from megatron_grow.train.rows import read_rows


def train_row(step: int, **fields) -> dict:
    return {"step": step, "stage": 0, "num_layers": 0, "loss": 1.0 / step, **fields}


def read(path: Path) -> list[dict]:
    """As any other program would: strict JSON, one object a line."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_row_can_be_read_as_soon_as_it_is_written(tmp_path):
    log = MetricsLog(tmp_path / "run")
    log.write(train_row(1))
    log.write({"step": 1, "stage": 0, "val_loss": 2.5})
    rows = read(tmp_path / "run" / "metrics.jsonl")  # not closed yet
    assert [row.get("val_loss") for row in rows] == [None, 2.5]
    assert rows[0] == train_row(1)
    log.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_becomes_null(tmp_path, value):
    log = MetricsLog(tmp_path)
    log.write(train_row(1, grad_norm=value))
    log.close()
    assert read(tmp_path / "metrics.jsonl")[0]["grad_norm"] is None


def write_killed_run(directory: Path) -> Path:
    """A run whose checkpoint is at step 4, killed while it wrote the row of step 7."""
    log = MetricsLog(directory)
    for step in range(1, 7):
        log.write(train_row(step))
        if step == 4:
            log.write({"step": 4, "stage": 0, "val_loss": 2.0})
            log.write({"event": "growth", "step": 4, "stage": 1})
    log.close()
    path = directory / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 7, "loss"')
    return path


def test_resume_drops_later_rows_and_repeats_none(tmp_path):
    path = write_killed_run(tmp_path)
    log = MetricsLog(tmp_path, resume_step=4)
    assert [row["step"] for row in read(path)] == [1, 2, 3, 4, 4, 4]
    # the boundary at step 4 happens again, then training goes on
    log.write({"step": 4, "stage": 0, "val_loss": 2.0})
    log.write({"event": "growth", "step": 4, "stage": 1})
    log.write({"step": 4, "stage": 1, "val_loss": 2.2})
    log.write(train_row(5, stage=1))
    log.close()
    rows = read(path)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 4, 4, 4, 5]
    assert [row.get("val_loss") for row in rows[4:]] == [2.0, None, 2.2, None]


def test_a_run_from_the_start_keeps_the_old_log_beside(tmp_path):
    path = write_killed_run(tmp_path)
    before = path.read_bytes()
    log = MetricsLog(tmp_path)
    log.write(train_row(1))
    log.close()
    assert [row["step"] for row in read(path)] == [1]
    assert (tmp_path / "metrics.jsonl.previous").read_bytes() == before


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 "):
        read_rows(path)
    before = path.read_bytes()
    with pytest.raises(UserError):
        MetricsLog(tmp_path, resume_step=2)
    assert path.read_bytes() == before


def test_tensorboard_has_the_same_scalars(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path, tensorboard=True)
    log.write(train_row(1))
    log.write(train_row(2))
    log.write({"step": 2, "stage": 0, "val_loss": 2.5})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [(1, 1.0), (2, 0.5)]
    assert [event.value for event in events.Scalars("validation/val_loss")] == [2.5]


def test_numbers_of_layers_are_read_back_layer_by_layer(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    key = "decoder.layers.mlp.router.weight"
    named = {key: [None, 0.5, math.nan], "embedding": 0.25}
    log = MetricsLog(tmp_path, tensorboard=True)
    log.write({"event": "layers", "step": 4, "stage": 1, "weight": named, "entropy": {}})
    log.write({"event": "gradient_correlation", "step": 4, "stage": 1, "pairs": [(0, 1)]})
    log.close()
    stored = {key: [None, 0.5, None], "embedding": 0.25}
    assert read(tmp_path / "metrics.jsonl")[0]["weight"] == stored
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    names = ["stage", f"weight/{key}/1", f"weight/{key}/2", "weight/embedding"]
    both = ["gradient_correlation/stage", *(f"layers/{name}" for name in names)]
    assert sorted(events.Tags()["scalars"]) == sorted(both)
    [event] = events.Scalars(f"layers/weight/{key}/1")
    assert (event.step, event.value) == (4, 0.5)


def test_missing_wandb_stops_before_any_write(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"logging\.wandb_project=mine .*pip install wandb"):
        MetricsLog(tmp_path / "run", wandb_project="mine")
    assert not (tmp_path / "run").exists()


def test_rows_that_a_full_disk_refuses_wait_for_room(tmp_path):
    said: list[str] = []
    log = MetricsLog(tmp_path, warn=said.append)
    log.write(train_row(1))
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))  # half of the next row fits
    try:
        log.write(train_row(2))
        log.write(train_row(3))
        rows = read(tmp_path / "metrics.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))
    assert [row["step"] for row in rows] == [1], "no half row"
    assert len(said) == 1 and "metrics.jsonl cannot be written" in said[0]
    log.write(train_row(4))
    assert [row["step"] for row in read(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    log.close()
    assert len(said) == 2 and "complete" in said[1]


def test_a_tensorboard_that_cannot_write_does_not_end_the_run(tmp_path):
    said: list[str] = []
    log = MetricsLog(tmp_path, tensorboard=True, warn=said.append)

    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    log._tensorboard.file_writer.add_summary = refuse  # as it does once its thread has died of that
    log.write(train_row(1))
    log.write(train_row(2))
    log.close()
    assert len(said) == 1 and "TensorBoard" in said[0]
    assert [row["step"] for row in read(tmp_path / "metrics.jsonl")] == [1, 2]
