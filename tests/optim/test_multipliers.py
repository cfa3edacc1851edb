"""Multipliers of rate, weight decay and epsilon: which groups they make, and what these do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.sections import OptimizerSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.optim.groups import parameter_groups
from megatron_grow.optim.multipliers import check_optimizer, multipliers_of
from tests.distributed import run_ranks
from tests.optim.toy import build, gpt, train, whole

LAYER = "decoder.layers."
TENSORS = logical_tensors(gpt())
ENTRIES: list[dict[str, Any]] = [
    {"tensors": f"{LAYER}mlp.*", "lr": 0.5, "weight_decay": 3.0},
    {"tensors": ["head", "*.linear_fc2.weight"], "lr": 0.2, "eps": 1e4},
]
SECTION = OptimizerSection(
    lr=1e-2, min_lr=1e-3, weight_decay=0.1, adam_eps=1e-6, clip_grad=0.1, multipliers=ENTRIES
)
PLAIN = {"lr_mult": 1.0, "max_lr": 1e-2, "min_lr": 1e-3, "wd_mult": 1.0, "weight_decay": 0.1}


def test_groups_are_megatron_cores() -> None:
    """In the order in which it sorts overrides; entries are multiplied; norms never decay."""
    [(_, groups)] = parameter_groups(SECTION, TENSORS, multipliers_of(SECTION, TENSORS))
    halved = {"lr_mult": 0.5, "max_lr": 5e-3, "min_lr": 5e-4}
    expected = [
        ({}, {"embedding.position_embeddings.weight", f"{LAYER}self_attention.linear_qkv.weight",
              f"{LAYER}self_attention.linear_proj.weight"}),
        ({"eps": 1e-2, "lr_mult": 0.1, "max_lr": 1e-3, "min_lr": 1e-4, "wd_mult": 3.0,
          "weight_decay": 0.3}, {f"{LAYER}mlp.linear_fc2.weight"}),
        ({"eps": 1e-2, "lr_mult": 0.2, "max_lr": 2e-3, "min_lr": 2e-4},
         {"embedding.word_embeddings.weight"}),
        ({**halved, "wd_mult": 0.0, "weight_decay": 0.0},
         {f"{LAYER}mlp.linear_fc1.bias", f"{LAYER}mlp.linear_fc2.bias",
          f"{LAYER}mlp.linear_fc1.layer_norm_weight", f"{LAYER}mlp.linear_fc1.layer_norm_bias"}),
        ({**halved, "wd_mult": 3.0, "weight_decay": 0.3}, {f"{LAYER}mlp.linear_fc1.weight"}),
        ({"wd_mult": 0.0, "weight_decay": 0.0},
         {f"{LAYER}self_attention.linear_qkv.bias", f"{LAYER}self_attention.linear_proj.bias",
          f"{LAYER}self_attention.linear_qkv.layer_norm_weight",
          f"{LAYER}self_attention.linear_qkv.layer_norm_bias",
          "decoder.final_layernorm.weight", "decoder.final_layernorm.bias"}),
    ]  # fmt: skip
    found = [(group.fields(_, SECTION), set(group.keys)) for group in groups]
    for (fields, keys), (differs, expected_keys) in zip(found, expected, strict=True):
        assert keys == expected_keys
        numbers = {name: fields.get(name) for name in PLAIN | differs}
        assert numbers == pytest.approx(PLAIN | differs)
        assert fields["default_config"] == ("lr_mult" not in differs)


def test_muon_multiplies_its_own_rate() -> None:
    section = OptimizerSection(
        optimizer="muon", lr=1e-3, muon_lr=2e-2, multipliers=[{"tensors": "*fc2.weight", "lr": 0.5}]
    )
    rules = parameter_groups(section, TENSORS, multipliers_of(section, TENSORS))
    assert [type(rule).__name__ for rule, _ in rules] == ["MuonAdam", "Adam"]
    rates = [[group.fields(rule, section)["max_lr"] for group in groups] for rule, groups in rules]
    assert rates == [[2e-2, 1e-2], [1e-3, 1e-3]]


REFUSED = {
    "[{}]": ([{}], "multipliers[0].tensors is missing: roles (matrix, vector, embedding, head) or"),
    "no tensor": (
        [{"tensors": "head"}, {"tensors": ["decoder.layer.mlp.linear_fc2.weight"]}],
        "multipliers[1].tensors=decoder.layer.mlp.linear_fc2.weight is no role and matches no "
        "tensor of any stage; did you mean decoder.layers.mlp.linear_fc2.weight",
    ),
    "no role": ([{"tensors": "matrx"}], "multipliers[0].tensors=matrx is no role and matches no "),
    "field": ([{"tensors": "head", "rate": 1}], "multipliers[0].rate is not a field; known are "),
    "range": ([{"tensors": "head", "lr": -1}], "multipliers[0].lr=-1.0 must be at least 0"),
    "type": ([{"tensors": 3}], "multipliers[0].tensors=3 must be one of str, list"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_entries_without_effect_are_refused(name: str) -> None:
    entries, said = REFUSED[name]
    with pytest.raises(UserError) as error:
        check_optimizer(OptimizerSection(multipliers=entries), [TENSORS])
    assert str(error.value).startswith(f"optimizer.{said}")


def test_an_epsilon_needs_a_rule_that_has_one() -> None:
    entries = [{"tensors": "matrix", "eps": 2.0}]
    with pytest.raises(UserError, match=r"^optimizer\.multipliers\[0\]\.eps=2\.0 has no effect"):
        check_optimizer(OptimizerSection(optimizer="muon", multipliers=entries), [TENSORS])
    entries[0]["tensors"] = "vector"
    check_optimizer(OptimizerSection(optimizer="muon", multipliers=entries), [TENSORS])


def test_a_tensor_of_a_later_stage_is_one() -> None:
    entries = [{"tensors": "output_layer.weight", "lr": 2.0}]
    untied = logical_tensors(gpt(share_embeddings_and_output_weights=False))
    check_optimizer(OptimizerSection(multipliers=entries), [TENSORS, untied])


def _compare_with_torch() -> None:
    """Steps of torch's AdamW, each tensor in a group of its own, fed the same gradients."""
    toy = build(SECTION, model=gpt(share_embeddings_and_output_weights=True))
    copies = {
        name.removeprefix("module."): torch.nn.Parameter(param.detach().clone())
        for name, param in toy.chunk.named_parameters()
    }

    def group(name: str) -> dict[str, Any]:
        rate, decay, eps = 1e-2, 0.1, 1e-6
        if ".mlp." in name or "pre_mlp_layernorm" in name:
            rate, decay = rate / 2, decay * 3
        if name.endswith(("word_embeddings.weight", "linear_fc2.weight")):
            rate, eps = rate / 5, eps * 1e4
        decay = decay if copies[name].dim() == 2 else 0.0
        return {"params": [copies[name]], "lr": rate, "weight_decay": decay, "eps": eps}

    reference = torch.optim.AdamW([group(name) for name in copies], betas=(0.9, 0.95))
    for number in range(3):
        toy.step(number)
        for name, param in toy.chunk.named_parameters():
            copies[name.removeprefix("module.")].grad = param.main_grad.clone()
        reference.step()
        for name, param in toy.chunk.named_parameters():
            copy = copies[name.removeprefix("module.")]
            torch.testing.assert_close(param, copy, rtol=0, atol=1e-6, msg=name)


def test_each_tensor_moves_at_its_own_rate() -> None:
    run_ranks(1, _compare_with_torch)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_copies_of_a_tied_head_move_together(precision: str) -> None:
    """The first and the last pipeline stage hold the embedding; :func:`whole` compares them."""
    layout = ParallelConfig(pipeline_model_parallel_size=2)
    ranks = run_ranks(4, train, SECTION, layout, None, 4, precision)
    state = whole([state for _, state in ranks])
    [(steps, alone)] = run_ranks(1, train, SECTION, ParallelConfig(), None, 4, precision)
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    np.testing.assert_allclose([n for _, n in ranks[0][0]], [n for _, n in steps], rtol=tolerance)
    key = ("embedding.word_embeddings.weight", "main_param")
    np.testing.assert_allclose(state[key], whole([alone])[key], rtol=0, atol=tolerance * 1e-1)
