"""``tools/benchmark.py gpu`` at toy size, where there is no GPU."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from megatron_grow.benchmark import gang
from megatron_grow.benchmark.gpu import command, correctness, profile, speed
from megatron_grow.benchmark.gpu.cases import CASES, STEPS
from megatron_grow.benchmark.gpu.plain import PlainGPT
from megatron_grow.benchmark.gpu.runner import Clock, Row, Task, Workers, run
from megatron_grow.benchmark.gpu.shapes import SIZES
from megatron_grow.cost.parameters import count_parameters
from tests import forks
from tests.distributed import run_ranks
from tests.train.command import command as pretrain


def test_all_parts_and_their_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def launch(argv: list[str], environment: Mapping[str, str], seconds: float) -> tuple[int, str]:
        ((code, output, errors),) = run_ranks(1, pretrain, argv)
        return code, output + errors

    monkeypatch.setattr(gang, "_CONTEXT", forks.CONTEXT)
    monkeypatch.setattr(correctness, "launch", launch)
    said: list[str] = []
    assert command.measure(tmp_path, tuple(command.PARTS), 10, "toy", said.append), said

    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [*found["parts"]] == [*command.PARTS]
    assert not [row for part in found["parts"].values() for row in part.values() if "failed" in row]
    cases = found["parts"]["correctness"]["against the CPU"]["cases"]
    assert [*cases] == ["1 layer to 4, adam", "1 layer to 4, BERT", "resumed"]
    for name in ("1 layer to 4, adam", "1 layer to 4, BERT"):
        assert cases[name]["largest"] == 0  # both are the CPU here
    assert cases["resumed"]["same_bits"]
    depths = [row["layers"] for row in found["parts"]["speed"].values()]
    assert depths == [3, 0, 1, 3, 0, 1, 0, 1, 3]
    assert found["extrapolated"]["layers"] == 3
    page = (tmp_path / "gpu.md").read_text()
    assert page.count("\n## ") == len(found["parts"])
    assert "| 7B, extrapolated | 3 |" in page


def test_what_fails_or_has_no_time_is_a_row(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gang, "_CONTEXT", forks.CONTEXT)

    def fails(workers: Workers) -> Row:
        raise RuntimeError("device fault")

    def measures(workers: Workers) -> Row:
        return {"value": 1}

    rows: dict[str, Row] = {}
    tasks = [
        Task("a", "fails", 1, fails),
        Task("a", "long", 1000, measures),
        Task("b", "measures", 1, measures),
    ]
    run(tasks, Clock(60), lambda task, row: rows.update({task.name: row}), lambda text: None)
    assert [*rows] == ["fails", "long", "measures"]
    assert "device fault" in rows["fails"]["failed"]
    assert rows["long"] == {"left_out": "it takes about 1000 s"}
    assert rows["measures"]["value"] == 1


def rows_of(losses: list[float], after_growth: float = 2.0) -> list[Row]:
    rows: list[Row] = [
        {"step": step, "loss": loss, "grad_norm": 1.0} for step, loss in enumerate(losses, 1)
    ]
    return [*rows, {"event": "growth", "val_loss_before": 2.0, "val_loss_after": after_growth}]


def test_what_counts_as_equal():
    case, losses = CASES["zero layers, function kept"], [3.0] * STEPS
    assert correctness.compared(case, rows_of(losses), rows_of(losses))["equal"]
    one_off = [*losses[:-1], 3.0 * 1.0002]
    found = correctness.compared(case, rows_of(losses), rows_of(one_off))
    assert not found["equal"] and found["largest"] == pytest.approx(2e-4)
    found = correctness.compared(case, rows_of(losses), rows_of(losses, 2.00001))
    assert not found["equal"] and found["kept"] == pytest.approx(5e-6)
    found = correctness.compared(case, rows_of(losses), "exit code 1")
    assert not found["equal"] and found["failed"] == {"gpu": "exit code 1"}


def test_a_profile_of_kernels():
    kernels = [("b", 0.5, 2.0), ("a", 3.0, 4.0), ("a", 0.0, 1.0), ("c", 1.5, 1.75)]
    found = profile.of_kernels(kernels)
    assert found["kernels"] == 4
    assert found["idle"] == 0.25  # between 2 and 3, of 0 to 4
    assert [(k["name"], k["count"], k["seconds"]) for k in found["longest"]] == [
        ("a", 2, 2.0),
        ("b", 1, 1.5),
        ("c", 1, 0.25),
    ]


def test_a_part_of_a_model_tells_of_the_whole():
    model = SIZES["full"].large.model
    few = {"shape": "7B", "layers": 0, "tokens_per_second": 1000.0, "seconds": 1, "mfu": None}
    many = few | {"layers": 10, "tokens_per_second": 500.0}
    found = speed.extrapolated([few, many], model)
    assert found is not None  # 1 ms for a token, and 0.1 ms for each of 60 layers
    assert found["tokens_per_second"] == pytest.approx(1000 / 7)
    assert speed.extrapolated([few], model) is None


def test_as_many_layers_as_fit():
    model, capacity = SIZES["full"].large.model, 80 << 30
    layers = speed.layers_that_fit(model, capacity)

    def state(count: int) -> int:  # bf16 weights; fp32 gradients, main parameters, two moments
        return 18 * count_parameters(replace(model, num_layers=count))

    assert state(layers) <= 0.8 * capacity < state(layers + 1)


def test_the_plain_gpt2_is_transformers():
    model = SIZES["toy"].gpt2.model
    rows, width = model.padded_vocab_size(1), model.hidden_size
    config = GPT2Config(
        vocab_size=rows,
        n_positions=model.max_position_embeddings,
        n_embd=width,
        n_layer=model.num_layers,
        n_head=model.num_attention_heads,
        activation_function="gelu_pytorch_tanh",
    )
    theirs = GPT2LMHeadModel(config).eval().transformer
    plain = PlainGPT(model)
    pairs = [(plain.tokens, theirs.wte), (plain.positions, theirs.wpe), (plain.norm, theirs.ln_f)]
    for ours, layer in zip(plain.layers, theirs.h, strict=True):
        pairs += [(ours.attention_norm, layer.ln_1), (ours.mlp_norm, layer.ln_2)]
        pairs += [(ours.qkv, layer.attn.c_attn), (ours.out, layer.attn.c_proj)]
        pairs += [(ours.up, layer.mlp.c_fc), (ours.down, layer.mlp.c_proj)]
    with torch.no_grad():
        for one, other in pairs:
            transposed = isinstance(one, torch.nn.Linear)
            one.weight.copy_(other.weight.t() if transposed else other.weight)
            if hasattr(one, "bias"):
                one.bias.copy_(torch.randn(one.bias.shape))
                other.bias.copy_(one.bias)
    _compare(plain, lambda tokens: theirs(tokens).last_hidden_state @ theirs.wte.weight.t(), rows)


def test_the_plain_llama_is_transformers():
    model = SIZES["toy"].llama.model
    rows = model.padded_vocab_size(1)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        max_position_embeddings=model.max_position_embeddings,
        rms_norm_eps=model.layernorm_epsilon,
    )
    theirs = LlamaForCausalLM(config).eval()
    plain = PlainGPT(model)
    pairs = [(plain.tokens, [theirs.model.embed_tokens]), (plain.norm, [theirs.model.norm])]
    pairs += [(plain.head, [theirs.lm_head])]
    for ours, layer in zip(plain.layers, theirs.model.layers, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        pairs += [(ours.attention_norm, [layer.input_layernorm])]
        pairs += [(ours.mlp_norm, [layer.post_attention_layernorm])]
        pairs += [(ours.qkv, [attention.q_proj, attention.k_proj, attention.v_proj])]
        pairs += [(ours.out, [attention.o_proj]), (ours.down, [mlp.down_proj])]
        pairs += [(ours.up, [mlp.gate_proj, mlp.up_proj])]
    with torch.no_grad():
        for one, others in pairs:
            one.weight.copy_(torch.cat([other.weight for other in others]))
    _compare(plain, lambda tokens: theirs(tokens).logits, rows)


def _compare(
    plain: PlainGPT, logits: Callable[[torch.Tensor], torch.Tensor], vocabulary: int
) -> None:
    tokens = torch.randint(vocabulary, (2, 17), generator=torch.Generator().manual_seed(0))
    inputs, labels = tokens[:, :-1], tokens[:, 1:]
    expected = torch.nn.functional.cross_entropy(logits(inputs).flatten(0, 1), labels.flatten())
    torch.testing.assert_close(plain(inputs, labels), expected)
