"""Every kind of operator on real ranks: one map, applied in memory, at load and offline.

The truth is the algebra applied to whole tensors in one process.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import StageSection
from tests.distributed import run_ranks
from tests.growth.three_ways import Found, check_bits, grow_all_ways
from tests.logits import agreed, logits
from tests.toy import MODEL, Trace, begin, layout, plan_of, run_config, train_stage

STEPS = 2
GPT = replace(MODEL, num_layers=2, kv_channels=8)
LLAMA = replace(
    GPT,
    position_embedding_type="rope",
    normalization="RMSNorm",
    activation="swiglu",
    add_bias_linear=False,
    share_embeddings_and_output_weights=False,
)
DOUBLE: dict[str, Any] = {
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_query_groups": 4,
    "ffn_hidden_size": 128,
}


@dataclass
class Case:
    grow: dict[str, Any]
    target: dict[str, Any]
    model: ModelConfig = GPT
    preserves: bool = True


CASES = {
    "hypercloning": Case({"recipe": "hypercloning"}, DOUBLE),
    "hypercloning, LLaMA": Case({"recipe": "hypercloning"}, DOUBLE, LLAMA),
    "block-diagonal": Case({"recipe": "staged"}, {**DOUBLE, "num_layers": 4}),
    "noise": Case(
        {
            "width": {"operator": "hypercloning", "snr_db": 10},
            "heads": {"operator": "hypercloning", "snr_db": 10},
            "ffn": {"operator": "lemon", "split": "random"},
        },
        {
            "hidden_size": 64,
            "num_attention_heads": 16,
            "num_query_groups": 4,
            "ffn_hidden_size": 200,
        },
    ),
    "lemon": Case(
        {"recipe": "lemon"},
        {"num_layers": 4, "hidden_size": 44, "num_query_groups": 4, "num_attention_heads": 8}
        | {"ffn_hidden_size": 90, "layernorm_epsilon": 1e-5 * 32 / 44},
    ),
    "zero padding": Case(
        {"width": "zero", "heads": "zero", "ffn": "zero"},
        {**DOUBLE, "hidden_size": 48, "layernorm_epsilon": 1e-5 * 32 / 48},
        LLAMA,
    ),
    "queries": Case({"heads": "fpi"}, {"num_attention_heads": 6}),
    "head size": Case({"heads": "head_size"}, {"kv_channels": 16}, LLAMA),
    "regroup": Case({"heads": "regroup"}, {"num_query_groups": 4}, LLAMA),
    "random feed-forward map": Case(
        {"ffn": "fpi", "depth": "identity"}, {"ffn_hidden_size": 100, "num_layers": 4}
    ),
    "bert2bert": Case({"recipe": "bert2bert"}, {**DOUBLE, "num_layers": 4}, preserves=False),
    "unshare": Case(
        {"depth": "unshare", "ffn": "fpi"},
        {"layer_sharing": [0, 1, 2, 1], "ffn_hidden_size": 80},
        replace(GPT, num_layers=4, layer_sharing="2x2"),
    ),
    "rows": Case(
        {"vocab": "mean", "positions": "interpolate", "depth": "mix"},
        {"vocab_size": 170, "max_position_embeddings": 24, "num_layers": 4},
        preserves=False,
        # 128 rows are padded to 144 on one rank and to 192 on two, as 170 are.
        model=replace(GPT, make_vocab_size_divisible_by=48),
    ),
}
TP2_PP2 = layout(tp=2, pp=2, sequence_parallel=True)
LAYOUTS: dict[int, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    2: {"DP2 to TP2": (layout(), layout(tp=2))},
    4: {"TP2 DP2 to TP2 PP2": (layout(tp=2), TP2_PP2)},
}


def run(case: Case, layouts: tuple[dict[str, Any], dict[str, Any]]) -> RunConfig:
    before, after = layouts
    target = replace(case.model, **case.target)
    source = {name: getattr(case.model, name) for name in case.target}
    return run_config(
        StageSection(until=STEPS, model=source, parallel=before),
        StageSection(parallel=after, grow=GrowSection(**case.grow)),
        model=target,
        global_batch_size=4,
    )


def grow_everything(world_size: int, root: str) -> dict[tuple[str, str], Found]:
    """On a rank."""
    found = {}
    for where, layouts in LAYOUTS[world_size].items():
        for name, case in CASES.items():
            config = run(case, layouts)
            live = begin(config, world_size)
            train_stage(live, config, Trace())
            directory = Path(root) / where / name
            found[where, name] = grow_all_ways(live, config, world_size, directory, logits)
    return found


Everything = dict[tuple[str, str], list[Found]]


@pytest.fixture(scope="module")
def found() -> Everything:
    everything: Everything = {}
    for world_size, layouts in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as root:
            ranks = run_ranks(world_size, grow_everything, world_size, root)
        for where in layouts:
            for name in CASES:
                everything[where, name] = [rank[where, name] for rank in ranks]
    return everything


WHERE = [(where, size) for size, layouts in LAYOUTS.items() for where in layouts]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("where", "size"), WHERE)
def test_the_bits_are_those_of_the_algebra(
    where: str, size: int, name: str, found: Everything
) -> None:
    """In memory, at load and offline, weights and moments, whatever the layouts."""
    check_bits(run(CASES[name], LAYOUTS[size][where]), found[where, name])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("where", "size"), WHERE)
def test_logits(where: str, size: int, name: str, found: Everything) -> None:
    """Kept to 1e-5 of the largest where the plan promises it, and changed where it does not."""
    config = run(CASES[name], LAYOUTS[size][where])
    assert (plan_of(config, size, 1).caveats == ()) == CASES[name].preserves
    before = agreed(rank.before for rank in found[where, name])
    after = agreed(rank.after for rank in found[where, name])
    difference = np.abs(after[..., : before.shape[-1]] - before).max() / np.abs(before).max()
    if CASES[name].preserves:
        assert difference < 1e-5
    else:
        assert difference > 1e-2
