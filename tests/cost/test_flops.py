"""FLOPs against the published definition and against torch's own counter."""

from __future__ import annotations

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import DataSection, TrainSection
from megatron_grow.config.stages import StageSection, resolve_stages
from megatron_grow.cost.flops import flops_at_step, flops_per_sample, model_flops_per_token
from tests.cost.gpt2 import gpt2


def test_six_times_the_parameters():
    model = gpt2(12, 768, normalization="RMSNorm")
    blocks = 12 * (12 * 768**2 + 2 * 768)
    assert flops_per_sample(model, "total", 1) == 6 * 124_373_760
    assert flops_per_sample(model, "blocks", 1) == 6 * blocks


def test_model_flops_equal_torchs_count():
    layers, hidden, heads, vocab, length = 2, 32, 4, 96, 24
    config = transformers.GPT2Config(
        n_layer=layers, n_embd=hidden, n_head=heads, vocab_size=vocab, n_positions=length
    )
    config._attn_implementation = "eager"  # the counter sees its matrix products
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(config)
        tokens = torch.zeros(1, length, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(tokens).logits.sum().backward()
    ours = ModelConfig(
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        vocab_size=vocab,
        make_vocab_size_divisible_by=1,
    )
    assert model_flops_per_token(ours, length) * length == counter.get_total_flops()


def test_model_flops_of_a_bert_equal_torchs_count():
    """Where all tokens are masked, as in transformers' head; with 3 of 20 the others are saved."""
    layers, hidden, heads, vocab, length = 2, 32, 4, 96, 20
    config = transformers.BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        vocab_size=vocab,
    )
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = transformers.BertForPreTraining(config)
        tokens = torch.zeros(1, length, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            output = model(tokens)
            (output.prediction_logits.sum() + output.seq_relationship_logits.sum()).backward()
    ours = ModelConfig(
        architecture="bert",
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        vocab_size=vocab,
    )
    whole, usual = (
        length * model_flops_per_token(ours, length, data=DataSection(options=options))
        for options in ({"masked_lm_prob": 0.99}, {})
    )
    assert whole == counter.get_total_flops()
    assert whole - usual == 17 * 6 * hidden * (hidden + vocab)
    assert usual == length * model_flops_per_token(ours, length, causal=True)


def test_causal_halves_attention_alone():
    model = gpt2(12, 768)
    whole, causal = (model_flops_per_token(model, 2048, causal=flag) for flag in (False, True))
    assert whole - causal == 6 * 12 * 768 * 2048
    assert model_flops_per_token(gpt2(0, 768), 2048, causal=True) == 6 * 50_304 * 768


def test_cost_of_a_run_up_to_a_step():
    target = gpt2(12, 768)
    sections = [
        StageSection(until=80, model={"num_layers": 0}),
        StageSection(until=90, model={"num_layers": 1}, grow=GrowSection(depth="random")),
        StageSection(grow=GrowSection(depth="copying_stack")),
    ]
    train = TrainSection(train_iters=100, seq_length=128, global_batch_size=8)
    stages = resolve_stages(sections, target, ParallelConfig(), train)
    one, full = (flops_per_sample(gpt2(n, 768), "blocks", 1) for n in (1, 12))
    for step, steps_at_one, steps_at_full in [(0, 0, 0), (80, 0, 0), (85, 5, 0), (100, 10, 10)]:
        expected = 1024 * (steps_at_one * one + steps_at_full * full)
        assert flops_at_step(stages, step, "blocks") == expected


def test_cost_counts_the_tokens_of_each_stage():
    """10 steps of 16 x 64 tokens, 20 of 4 x 128, 70 of 8 x 256."""
    sections = [
        StageSection(
            until=10,
            model={"num_layers": 0},
            train={"seq_length": 64, "global_batch_size": 16},
        ),
        StageSection(
            until=30,
            model={"num_layers": 1},
            train={"seq_length": 128, "global_batch_size": 4},
            grow=GrowSection(depth="random"),
        ),
        StageSection(grow=GrowSection(depth="copying_stack")),
    ]
    train = TrainSection(train_iters=100, seq_length=256, global_batch_size=8)
    stages = resolve_stages(sections, gpt2(12, 768), ParallelConfig(), train)
    consumed = {0: (0, 0, 0), 7: (7168, 0, 0), 10: (10_240, 0, 0), 11: (10_240, 512, 0)}
    consumed |= {30: (10_240, 10_240, 0), 100: (10_240, 10_240, 143_360)}
    for part in ("total", "blocks"):
        costs = [flops_per_sample(gpt2(layers, 768), part, 1) for layers in (0, 1, 12)]
        for step, tokens in consumed.items():
            expected = sum(number * cost for number, cost in zip(tokens, costs, strict=True))
            assert flops_at_step(stages, step, part) == expected
    for stage in stages:
        for step in consumed.keys() & {stage.first_step, stage.last_step}:
            assert stage.tokens_at(step) == sum(consumed[step])
