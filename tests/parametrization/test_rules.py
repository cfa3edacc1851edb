"""What rules say of each tensor: published closed forms, and spectral norms of what is drawn."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import sqrt
from typing import Any

import pytest
import torch

from megatron_grow.config.model import ModelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import OptimizerSection, ParametrizationSection
from megatron_grow.config.stages import StageSection
from megatron_grow.inputs.errors import UserError
from megatron_grow.model.architectures import logical_tensors
from megatron_grow.optim.multipliers import Multipliers
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.parametrization.base import Parametrization
from megatron_grow.parametrization.table import (
    parametrization_of,
    parametrized,
    recorded_parametrization,
)
from megatron_grow.state.boxes import full
from megatron_grow.state.fresh import fresh
from megatron_grow.state.tensors import Constant, Normal

UNTIED = ModelConfig(
    num_layers=16,
    hidden_size=256,
    num_attention_heads=8,
    vocab_size=512,
    share_embeddings_and_output_weights=False,
)
BASE = {"hidden_size": 64, "num_attention_heads": 8, "num_layers": 2}
"""m_d = 4 and m_L = 8, as in the worked example; heads of 8 become heads of 32."""
LAYERS = "decoder.layers."
HIDDEN = [
    f"{LAYERS}{name}.weight"
    for name in (
        "self_attention.linear_qkv",
        "self_attention.linear_proj",
        "mlp.linear_fc1",
        "mlp.linear_fc2",
    )
]
IN_LAYERS = [f"{LAYERS}mlp.linear_fc1.bias", f"{LAYERS}mlp.linear_fc2.bias"]
IN_LAYERS += [f"{LAYERS}self_attention.linear_qkv.layer_norm_weight"]
TABLES = ["embedding.word_embeddings.weight", "embedding.position_embeddings.weight"]
HEAD, FINAL_NORM = "output_layer.weight", ["decoder.final_layernorm.weight"]


def rule(
    name: str, base: dict[str, Any] = BASE, model: ModelConfig = UNTIED, **more: Any
) -> Parametrization:
    config = RunConfig(
        model=model, parametrization=ParametrizationSection(name=name, base=base, **more)
    )
    return parametrization_of(config.parametrization, parametrized(config).model)


def multipliers(found: Parametrization, key: str, **optimizer: Any) -> Multipliers:
    tensor = logical_tensors(found.target)[key]
    return found.multipliers(tensor, optimizer_of(OptimizerSection(**optimizer)).rule(tensor))


def std(found: Parametrization, key: str) -> float:
    init = found.tensors(found.target)[key].init
    assert isinstance(init, Normal)
    return init.std


def test_mup_under_adam() -> None:
    """Width alone: variance and rate of hidden matrices, epsilon, scores, logits."""
    found = rule("mup", {k: v for k, v in BASE.items() if k != "num_layers"})
    assert found.target.logits_scaling == 4.0
    assert found.target.residual_multiplier is found.target.embedding_multiplier is None
    # 1 / size of a head, and what it is in standard at the base: 1 / sqrt(8).
    assert found.target.softmax_scale == pytest.approx(1 / 32 / (1 / 8) / sqrt(8))
    for key in HIDDEN:
        assert multipliers(found, key) == pytest.approx(Multipliers(0.25, 1.0, 0.25)), key
        ends = key.endswith(("proj.weight", "fc2.weight"))
        assert std(found, key) == pytest.approx(0.02 / 2 / (sqrt(2 * 16) if ends else 1)), key
    for key in (*IN_LAYERS, *TABLES, HEAD, *FINAL_NORM):
        assert multipliers(found, key) == pytest.approx(Multipliers(1.0, 1.0, 0.25)), key
    for key in (*TABLES, HEAD):
        assert std(found, key) == 0.02


@pytest.mark.parametrize(
    ("exponent", "branch", "hidden", "norms", "eps"),
    [(0.5, 0.3536, 0.0884, 0.3536, 0.0884), (1.0, 0.125, 0.25, 1.0, 0.03125)],
)
def test_the_worked_example_of_completep(
    exponent: float, branch: float, hidden: float, norms: float, eps: float
) -> None:
    """m_d = 4, m_L = 8; weight decay is multiplied by m_d, whatever the exponent."""
    found = rule("completep", depth_exponent=exponent)
    assert found.target.residual_multiplier == pytest.approx(branch, rel=1e-3)
    for key in HIDDEN:
        expected = Multipliers(hidden, 4.0, eps)
        assert asdict(multipliers(found, key)) == pytest.approx(asdict(expected), rel=1e-3), key
        ends = key.endswith(("proj.weight", "fc2.weight"))  # of the base's two layers
        assert std(found, key) == pytest.approx(0.02 / 2 / (sqrt(2 * 2) if ends else 1)), key
    for key in IN_LAYERS:
        said = multipliers(found, key)
        assert (said.lr, said.eps) == pytest.approx((norms, eps), rel=1e-3), key
    for key in (*TABLES, HEAD):
        assert multipliers(found, key) == pytest.approx(Multipliers(1.0, 1.0, 0.25)), key
    assert multipliers(found, FINAL_NORM[0]).lr == 1.0


# Of a hidden square matrix, one that widens, one that narrows; a gain; a table; the head.
RATES: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    # Gradients fall as 1 / width: all that is not a hidden matrix makes up for it.
    "sgd": ({"optimizer": "sgd"}, (1, 1, 1, 4, 4, 4)),
    # Updates have the spectral norm that they should, up to constants of the aspect ratio.
    "unit_rms_norm": (
        {"optimizer": "muon", "muon_scale_mode": "unit_rms_norm"},
        (1, 1, 1, 1, 1, 1),
    ),
    "shape_scaling": (
        {"optimizer": "muon", "muon_scale_mode": "shape_scaling"},
        (1, 1, 1, 1, 1, 1),
    ),
    # Norm sqrt(max(out, in)): larger by the root of the width than it should be.
    "spectral": ({"optimizer": "muon", "muon_scale_mode": "spectral"}, (0.5, 0.5, 0.5, 1, 1, 1)),
    # A norm of 1 over all entries of what is no hidden matrix: the root of the width.
    "nsgd": ({"optimizer": "muon_nsgd", "muon_embeddings": False}, (1, 1, 1, 2, 2, 2)),
    # Tables as orthogonal matrices, whose entries are 1 / sqrt(width); logits are divided by 4.
    "muon_nsgd": ({"optimizer": "muon_nsgd"}, (1, 1, 1, 2, 2, 4)),
}


@pytest.mark.parametrize("name", RATES)
def test_rates_of_mup_under_other_optimizers(name: str) -> None:
    """By hand, for width times 4; vocabularies larger than the width."""
    optimizer, expected = RATES[name]
    found = rule("mup", {"hidden_size": 64, "num_attention_heads": 8})
    keys = (HIDDEN[1], HIDDEN[2], HIDDEN[3], IN_LAYERS[2], TABLES[0], HEAD)
    assert [multipliers(found, key, **optimizer).lr for key in keys] == pytest.approx(expected)


def test_depth_under_sgd_and_muon() -> None:
    """Gradients of branches fall as depth^-1, their updates should not (alpha = 1)."""
    found = rule("completep", {"num_layers": 2})
    assert multipliers(found, HIDDEN[0], optimizer="sgd").lr == pytest.approx(8.0)
    assert multipliers(found, HIDDEN[0], optimizer="muon").lr == pytest.approx(1.0)
    half = rule("completep", {"num_layers": 2}, depth_exponent=0.5)
    assert multipliers(half, HIDDEN[0], optimizer="sgd").lr == pytest.approx(1.0)
    assert multipliers(half, HIDDEN[0], optimizer="muon").lr == pytest.approx(8**-0.5)


def test_ratios_of_fans_and_not_of_the_width_decide() -> None:
    """A feed-forward layer that grows by 2 where the width grows by 4."""
    model = replace(UNTIED, ffn_hidden_size=1024)
    found = rule("mup", {**BASE, "ffn_hidden_size": 512}, model)
    fc1, fc2 = HIDDEN[2:]
    assert multipliers(found, fc1).lr == pytest.approx(1 / 4)
    assert multipliers(found, fc2).lr == pytest.approx(1 / 2)
    assert std(found, fc2) == pytest.approx(0.02 / sqrt(2) / sqrt(2 * 16))


def test_stages_have_the_rates_of_the_target_and_their_own_fans_at_init() -> None:
    found = rule("completep")
    small = replace(found.target, num_layers=1, hidden_size=128)
    tensors = found.tensors(small, 16)
    for key in HIDDEN:
        assert found.multipliers(tensors[key], optimizer_of(OptimizerSection())) == multipliers(
            found, key
        )
    init = tensors[HIDDEN[0]].init
    assert isinstance(init, Normal)
    assert init.std == pytest.approx(0.02 / sqrt(2))


GATED = ModelConfig(
    num_layers=1,
    hidden_size=768,
    num_attention_heads=12,
    num_query_groups=4,
    ffn_hidden_size=3072,
    activation="swiglu",
    vocab_size=2304,
    max_position_embeddings=64,
    share_embeddings_and_output_weights=False,
)


def test_the_published_deviations_of_the_spectral_condition() -> None:
    """768 to 768, 768 to 3072 and back; queries and keys of one tensor have their own."""
    tensors = rule("spectral", {}, GATED).tensors(GATED)
    proj, fc1, fc2 = (tensors[key].init for key in HIDDEN[1:])
    assert [init.std for init in (proj, fc1, fc2)] == pytest.approx(
        [0.0180, 0.0241, 0.0060], abs=5e-5
    )
    assert proj.parts == fc1.parts == ()


def test_matrices_begin_with_the_spectral_norm_of_their_fans() -> None:
    """Of those that are drawn, the largest singular value: within 2 % of sqrt(out / in)."""
    tensors = rule("spectral", {}, GATED).tensors(GATED)

    def drawn(key: str) -> torch.Tensor:
        tensor = tensors[key]
        return fresh(tensor, full(tensor.shape), tensor.init, seed=1)

    qkv = drawn(HIDDEN[0])[0]  # (4 groups, 3 queries, key and value, 64, 768)
    gate, up = drawn(HIDDEN[2])[0]
    matrices = {
        "query": qkv[:, :3].flatten(0, 2),
        "key": qkv[:, 3].flatten(0, 1),
        "value": qkv[:, 4].flatten(0, 1),
        "gate": gate,
        "up": up,
        "fc2": drawn(HIDDEN[3])[0],
        "proj": drawn(HIDDEN[1])[0].flatten(1),
        "head": drawn(HEAD),
    }
    for name, matrix in matrices.items():
        norm = torch.linalg.matrix_norm(matrix, 2).item()
        assert norm == pytest.approx(sqrt(matrix.shape[0] / matrix.shape[1]), rel=0.02), name
    # A part of a tensor has the bits of the whole.
    tensor = tensors[HIDDEN[0]]
    box = ((0, 1), (1, 3), (2, 5), (3, 9), (5, 700))
    assert torch.equal(fresh(tensor, box, tensor.init, 1), qkv[None, 1:3, 2:5, 3:9, 5:700])


@pytest.mark.parametrize("tied", [True, False])
def test_the_stream_begins_at_one_whether_or_not_the_head_is_tied(tied: bool) -> None:
    found = rule("spectral", {}, replace(GATED, share_embeddings_and_output_weights=tied))
    tensor = found.tensors(found.target)[TABLES[0]]
    table = fresh(tensor, full(tensor.shape), tensor.init, seed=1)
    given = table * (found.target.embedding_multiplier or 1.0)
    assert given.square().mean().sqrt().item() == pytest.approx(1.0, rel=0.05)
    if tied:
        assert torch.linalg.matrix_norm(table, 2).item() == pytest.approx(sqrt(3), rel=0.02)


def test_standard_says_nothing() -> None:
    found = rule("standard", {})
    assert found.target == UNTIED
    assert found.tensors(UNTIED, 7) == logical_tensors(UNTIED, 7)
    assert {multipliers(found, key) for key in logical_tensors(UNTIED)} == {Multipliers()}


def test_what_a_run_says_of_multipliers_stays() -> None:
    """Its own are used as they are, a stage's too; and a run that has them all stays the same."""
    config = RunConfig(
        model=replace(UNTIED, logits_scaling=3.0),
        parametrization=ParametrizationSection(name="completep", base=BASE),
        stages=[StageSection(until=0.5, model={"num_layers": 0}), StageSection()],
    )
    config.stages[1].grow = None
    found = parametrized(config)
    assert (found.model.logits_scaling, found.model.residual_multiplier) == (3.0, 0.125)
    assert parametrized(found) == found
    assert recorded_parametrization(asdict(found), UNTIED) == parametrization_of(
        found.parametrization, found.model
    )


def test_a_rule_by_import_path() -> None:
    found = rule("megatron_grow.parametrization.completep:CompleteP", depth_exponent=0.5)
    assert found == rule("completep", depth_exponent=0.5)


def test_biases_and_gains_begin_as_ever() -> None:
    for name in ("mup", "completep", "spectral"):
        tensors = rule(name).tensors(UNTIED)
        assert tensors[IN_LAYERS[0]].init == Constant(0.0)
        assert tensors[IN_LAYERS[2]].init == Constant(1.0)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"name": "mu"}, "parametrization.name='mu' is not a parametrization; known are st"),
    "no base": ({"name": "mup"}, "parametrization.base names nothing in which the base model di"),
    "unused base": ({"base": BASE}, "parametrization.base={'num_layers': 2, 'hidden_size': 64} h"),
    "no field": (
        {"name": "mup", "base": {"width": 64}},
        "parametrization.base.width is not a field; known are ",
    ),
    "heads": (
        {"name": "mup", "base": {"hidden_size": 60}},
        "parametrization.base: model.num_attention_heads=8 does not divide model.hidden_size=60",
    ),
    "no layers": (
        {"name": "completep", "base": {"num_layers": 0}},
        "parametrization.base={'num_layers': 0} has no tensor decoder.layers.mlp.linear_fc1.bias",
    ),
    "option": (
        {"name": "mup", "base": BASE, "options": {"alpha": 1}},
        "parametrization.options.alpha is not an option of mup; known are none",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name: str) -> None:
    fields, said = REFUSED[name]
    with pytest.raises(UserError) as error:
        parametrized(RunConfig(model=UNTIED, parametrization=ParametrizationSection(**fields)))
    assert str(error.value).startswith(said)
