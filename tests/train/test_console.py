from __future__ import annotations

import io
from functools import partial

import rich.console

from megatron_grow.train.console import Console

ROW = {
    "step": 10,
    "stage": 1,
    "num_layers": 12,
    "loss": 4.25,
    "lr": 1e-3,
    "grad_norm": 0.5,
    "tokens_per_second": 12345.6,
    "step_time": 0.5,
}
GROWTH = {
    "step": 10,
    "stage": 1,
    "summary": "0 -> 12 layers by random",
    "from_layers": 0,
    "to_layers": 12,
    "from_layout": "TP1 PP1 DP4",
    "to_layout": "TP2 PP2 DP1",
    "from_batch": "8 x 512",
    "to_batch": "8 x 512",
    "from_parameters": 1000,
    "to_parameters": 250_000,
    "bytes_moved": 2_000_000,
    "pause_seconds": 1.5,
    "val_loss_before": 5.0,
    "val_loss_after": 6.0,
}


def test_without_a_terminal_a_row_is_one_line(capsys):
    with Console(total_steps=250) as console:
        console.train_row(ROW, {})
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "\x1b" not in out
    for part in ("10/250", "stage 1", "12 layers", "4.2500", "12,346 tokens/s", "ETA 2m00s"):
        assert part in out


def test_the_parts_of_a_loss_stand_behind_it(capsys):
    others = {"masked_lm_loss": 3.5, "sentence_loss": 0.75, "masked_lm_accuracy": 0.125}
    with Console(total_steps=250) as console:
        console.train_row(ROW, others)
        console.evaluation(
            {**ROW, "val_loss": 4.5}, {f"val_{name}": value for name, value in others.items()}
        )
    told = "(masked_lm 3.5000 12.5 %, sentence 0.7500)"
    trained, evaluated = capsys.readouterr().out.splitlines()
    assert f"| loss 4.2500 {told} | lr" in trained
    assert evaluated.endswith(f"| validation loss 4.5000 {told}")


def test_growth_says_what_grew_and_what_it_took(capsys):
    with Console(total_steps=250) as console:
        console.growth(GROWTH)
        console.growth({**GROWTH, "val_loss_before": None, "val_loss_after": None})
    measured, unmeasured = capsys.readouterr().out.split("step ")[1:]
    for part in ("0 to 12 layers", "TP1 PP1 DP4 -> TP2 PP2 DP1", "250,000", "2 MB", "1.50 s"):
        assert part in measured and part in unmeasured
    assert "5.0000" in measured and "6.0000" in measured
    assert "loss" not in unmeasured
    with Console(total_steps=250) as console:
        console.growth({**GROWTH, "val_loss_after": None})
    interrupted = capsys.readouterr().out
    assert "5.0000 before" in interrupted and "asked to stop" in interrupted
    assert "batch" not in measured


def test_all_that_grew_stands_below_the_depth(capsys):
    more = "6 -> 12 layers by copying_stack, 768 -> 3072 ffn_hidden_size by hypercloning"
    with Console(total_steps=250) as console:
        console.growth({**GROWTH, "from_layers": 6, "summary": more, "to_batch": "4 x 1024"})
    event, *lines = capsys.readouterr().out.splitlines()
    assert event == "step  10/250 | grew from 6 to 12 layers"
    assert lines[0] == f"    growth      {more}"
    assert [line.split()[0] for line in lines[1:]] == [
        *("layout", "batch", "parameters", "moved", "val")
    ]


def test_a_bar_fits_a_line_of_a_terminal(monkeypatch):
    """The parts of a loss are in the lines of evaluations."""
    terminal = partial(rich.console.Console, file=io.StringIO(), force_terminal=True, width=110)
    monkeypatch.setattr(rich.console, "Console", terminal)
    with Console(total_steps=250) as console:
        console.train_row(ROW, {"masked_lm_loss": 3.5, "masked_lm_accuracy": 0.125})
    told = terminal.keywords["file"].getvalue()
    assert "10/250" in told and "loss 4.2500 | 12,346 tokens/s | ETA 2m00s" in told
    assert "masked_lm" not in told


def test_a_stage_that_changes_the_batch_alone(capsys):
    same = {"from_layers": 12, "summary": "the same model", "to_batch": "4 x 1024"}
    with Console(total_steps=250) as console:
        console.growth({**GROWTH, **same})
    out = capsys.readouterr().out
    for part in ("stage 1, the same model", "8 x 512 -> 4 x 1024 tokens"):
        assert part in out
    assert "grew" not in out


def test_other_ranks_are_silent(capsys):
    with Console(total_steps=250, enabled=False) as console:
        console.train_row(ROW, {})
        console.growth(GROWTH)
        console.message("text")
        console.warning("text")
    assert capsys.readouterr().out == ""


def test_gpus_stand_before_the_time_that_is_left(capsys):
    gpu = {"tokens_per_second_per_gpu": 1.0, "peak_memory": 23_400_000_000, "data_wait": 0.009}
    with Console(total_steps=250) as console:
        console.train_row(ROW, {}, gpu)
        waits = {**ROW, "communication_wait": 0.122}
        console.train_row(waits, {}, {**gpu, "mfu": 0.4123, "data_wait": 0.05})
        console.train_row(waits, {})  # of a CPU
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.endswith("12,346 tokens/s | 23.4 GB | ETA 2m00s")
    waiting = "5 % waiting for data | 12 % waiting for communication"
    assert second.endswith(f"| MFU 41.2 % | 23.4 GB | {waiting} | ETA 2m00s")
    assert third.endswith("12,346 tokens/s | ETA 2m00s")
