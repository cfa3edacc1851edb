"""Fewer kernels, the same numbers: functions, and runs of several steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import chain
from typing import NamedTuple

import pytest
import torch
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.utils import unwrap_model
from torch._dynamo.utils import counters
from torch.nn import functional

from megatron_grow.config.kernels import KernelsSection
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import StageSection
from megatron_grow.cost.activations import activations
from megatron_grow.inputs.errors import UserError
from megatron_grow.live.activations import Activations
from megatron_grow.live.layer_means import Entry
from megatron_grow.live.stage import LiveStage
from megatron_grow.model.architectures import architecture_of
from megatron_grow.model.kernels import activation, cross_entropy, rotary, table, weight_gradients
from tests.distributed import run_ranks
from tests.toy import MODEL, Trace, begin, grown_run, layout, run_config, train, train_stage

ALL = KernelsSection(
    **{field.name: field.name != "layers" for field in fields(KernelsSection)}  # it excludes one
)
LAYERS = KernelsSection(layers=True, attention=True, rotary=True, activation=True)


def gradients(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> list[torch.Tensor]:
    """What ``function`` gives, and the gradients of its inputs from a random one of it."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(7))
    output.backward(upstream)
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.fixture
def _traced():
    """Compiled functions are traced, forward and backward, and run by torch: no C++ compiler."""
    torch.compiler.reset()
    with torch.compiler.set_stance("default", force_backend="aot_eager"):
        yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("turned", [8, 4])
def test_rotary_is_megatrons(interleaved: bool, turned: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 2, 3, 8, generator=generator)
    half = torch.rand(6, 1, 1, turned // 2, generator=generator) * 40
    angles = half.repeat_interleave(2, -1) if interleaved else torch.cat((half, half), -1)

    def megatrons(x: torch.Tensor) -> torch.Tensor:
        return rope_utils._apply_rotary_pos_emb_bshd(x, angles, rotary_interleaved=interleaved)

    expected = gradients(megatrons, x)
    for _ in range(2):  # the second finds its tables made
        assert_same(gradients(lambda x: rotary.rotate(x, angles, interleaved), x), expected)


@pytest.mark.usefixtures("_traced")
def test_activations() -> None:
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(5, 2, 8, generator=generator), torch.randn(8, generator=generator)

    def gated(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return functional.silu((x + bias)[..., :4]) * (x + bias)[..., 4:]

    found = gradients(lambda x, b: activation._activated(x, b, functional.silu, True), x, bias)
    assert_same(found, gradients(gated, x, bias))
    found = gradients(lambda x: activation._activated(x, None, functional.gelu, False), x)
    assert_same(found, gradients(functional.gelu, x))  # not the tanh that comes close to it


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax(dtype: torch.dtype) -> None:
    rows = 4 * torch.randn(7, 33, generator=torch.Generator().manual_seed(0))
    rows[0] += 300.0  # exp overflows unless the maximum is taken off
    rows[:, 30:] = -torch.inf  # padding
    rows = rows.to(dtype)
    exact, expected = rows.double(), rows.double().softmax(1)
    top, total = cross_entropy.softmax_(rows)
    torch.testing.assert_close(top, exact.amax(1).float(), rtol=0, atol=0)
    sums = (exact - exact.amax(1, keepdim=True)).exp().sum(1)
    torch.testing.assert_close(total.double(), sums, rtol=1e-6, atol=0)
    rounding = 1e-6 if dtype is torch.float32 else 2**-8
    torch.testing.assert_close(rows.double(), expected, rtol=rounding, atol=1e-9)


def test_weight_gradients_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, upstream = torch.randn(2, 9, 4, generator=generator), torch.randn(2, 9, 3)
    total = torch.ones(3, 4)
    for x, gradient in zip(inputs, upstream, strict=True):
        weight_gradients.Accumulation.wgrad_gemm_accum_fp32(x, gradient, total)
    expected = 1 + torch.einsum("ntr,ntc->rc", upstream.double(), inputs.double())
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)


def test_transformer_engines_layers_do_it_themselves() -> None:
    layer = torch.nn.Module()
    layer.fuse_wgrad_accumulation = False
    weight_gradients.fuse(layer)
    assert layer.fuse_wgrad_accumulation


ROTARY = replace(
    MODEL,
    position_embedding_type="rope",
    normalization="RMSNorm",
    activation="swiglu",
    add_bias_linear=False,
    share_embeddings_and_output_weights=False,
)
"""Llama-style. MODEL has biases, GELU, layer norms, learned positions and a tied head."""


def _trace(config: RunConfig, world_size: int) -> Trace:
    with torch.compiler.set_stance("force_eager"):
        return train(config, world_size)


@pytest.mark.parametrize("model", [MODEL, ROTARY], ids=["gpt2", "llama"])
@pytest.mark.parametrize(
    ("before", "after"), [(layout(), layout()), (layout(), layout(tp=2, sequence_parallel=True))]
)
def test_runs_that_grow(model, before: dict, after: dict) -> None:
    """Losses and gradient norms before and after a growth, dropout aside."""
    world_size = after["tensor_model_parallel_size"]
    config = grown_run(before, after, model=model, until=3, train_iters=6)
    plain = run_ranks(world_size, _trace, config, world_size)
    fused = run_ranks(world_size, _trace, replace(config, kernels=ALL), world_size)
    for one, other in zip(fused, plain, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-5)
        assert one.grad_norms == pytest.approx(other.grad_norms, rel=1e-4)


class OfLayers(NamedTuple):
    """A run."""

    trace: Trace
    measured: dict[Entry, float]
    """In one more step."""
    graphs: int
    """That were traced."""
    kept: int
    """Bytes that a layer keeps for its backward pass."""


def _kept(live: LiveStage, config: RunConfig) -> int:
    """By the second layer, without its parameters and the angles that all layers share."""
    model = unwrap_model(live.chunks[0])
    train, storages = config.train, dict[int, int]()
    angles = model.rotary_pos_emb(train.seq_length)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    shape = train.seq_length, train.micro_batch_size, config.model.hidden_size
    hidden = torch.ones(shape, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.decoder.layers[1](hidden, attention_mask=None, rotary_pos_emb=angles)
    for tensor in (angles, *model.parameters()):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def _of_layers(config: RunConfig, compiles: bool) -> OfLayers:
    stance = {"stance": "default", "force_backend": "aot_eager"}
    with torch.compiler.set_stance(**(stance if compiles else {"stance": "force_eager"})):
        live, trace = begin(config, 1), Trace()
        train_stage(live, config, trace, steps=3)
        graphs, kept = counters["stats"]["unique_graphs"], _kept(live, config)
        assert not counters["graph_break"]
        # torch 2.11 logs its settings at each graph, and cannot write what stands in this one.
        assert not torch._dynamo.config.ignore_logging_functions
        probes = architecture_of(config.model).probes
        activations = Activations(chain.from_iterable(map(probes, live.chunks)))
        activations.start()
        train_stage(live, config, trace, steps=1)
        means = {entry: sum_ / count for entry, (sum_, count) in activations.stop().items()}
        return OfLayers(trace, means, graphs, kept)


def test_whole_layers() -> None:
    """One graph for all layers, traced forward and backward; what is measured in them is so too."""
    config = run_config(StageSection(), model=replace(ROTARY, num_layers=3), global_batch_size=2)
    (plain,) = run_ranks(1, _of_layers, config, False)
    (stage,) = config.resolve(1)
    for recompute in (None, "full"):
        train = replace(config.train, recompute_granularity=recompute)
        compiled = replace(config, train=train, kernels=LAYERS)
        (run,) = run_ranks(1, _of_layers, compiled, True)
        assert run.trace.losses == pytest.approx(plain.trace.losses, rel=1e-5)
        assert run.trace.grad_norms == pytest.approx(plain.trace.grad_norms, rel=1e-4)
        assert run.measured == pytest.approx(plain.measured, rel=1e-4)
        for its, kernels in ((plain, ()), (run, ("layers",))):
            formula = activations(stage.model, stage.parallel, stage.batch, 4, kernels=kernels)
            assert its.kept == pytest.approx(formula.layer, rel=0.02)
        # One for the embedding's output, which lies otherwise in memory, and one for all others;
        # where layers are recomputed, as many without gradients.
        assert run.graphs == (4 if recompute else 2)


def _chosen_and_loss(kernels: KernelsSection) -> tuple[table.Chosen, list[float]]:
    config = replace(run_config(StageSection()), kernels=kernels)
    live, trace = begin(config, 1), Trace()
    train_stage(live, config, trace, steps=2)
    return live.kernels, trace.losses


def test_a_cpu_computes_as_ever_unless_asked() -> None:
    ((chosen, _),) = run_ranks(1, _chosen_and_loss, KernelsSection())
    assert chosen == ((), {})
    ((chosen, _),) = run_ranks(1, _chosen_and_loss, KernelsSection(weight_gradients=True))
    assert chosen == (("weight_gradients",), {})


def test_a_gpu_uses_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = table.KERNELS["rotary"]._replace(lacks=lambda device: "Triton")
    needless = table.KERNELS["norms"]._replace(helps=lambda device: False)
    rest = {name: kernel._replace(lacks=lambda _: None) for name, kernel in table.KERNELS.items()}
    monkeypatch.setattr(table, "KERNELS", {**rest, "rotary": lacking, "norms": needless})
    gpu = torch.device("cuda", 0)
    chosen = table.choose(KernelsSection(activation=False), gpu, ParallelConfig())
    assert set(chosen.used) == set(rest) - {"rotary", "activation", "norms", "layers"}
    assert chosen.lacking == {"rotary": "Triton"}
    with pytest.raises(UserError, match=r"^kernels\.rotary=true needs Triton, which is not here"):
        table.choose(KernelsSection(rotary=True), gpu, ParallelConfig())


@pytest.mark.parametrize("layers", [None, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_plan_takes_what_a_gpu_would_use(
    monkeypatch: pytest.MonkeyPatch, layers: bool | None, ranks: int
) -> None:
    whole = {name: kernel._replace(lacks=lambda _: None) for name, kernel in table.KERNELS.items()}
    monkeypatch.setattr(table, "KERNELS", whole)
    section = KernelsSection(layers=layers, activation=False)
    parallel = ParallelConfig(tensor_model_parallel_size=ranks)
    chosen = table.choose(section, torch.device("cuda", 0), parallel)
    without_a_kernel_of_torchs_own = table.KERNELS["norms"].helps(torch.device("cuda", 0))
    norms = set() if without_a_kernel_of_torchs_own else {"norms"}
    assert section.on_a_gpu(parallel) == {*chosen.used, *norms}


def test_whole_layers_are_for_stages_of_one_rank_a_layer() -> None:
    gpu = torch.device("cpu")
    one, two = ParallelConfig(), ParallelConfig(tensor_model_parallel_size=2)
    section = KernelsSection(layers=True)
    assert table.choose(section, gpu, one) == (("layers",), {})
    lacking = {"layers": "tensor_model_parallel_size=1"}
    assert table.choose(section, gpu, two) == ((), lacking)
    with pytest.raises(
        UserError, match=r"^kernels\.layers=true and kernels\.weight_gradients=true"
    ):
        KernelsSection(layers=True, weight_gradients=True)


def test_the_table_has_every_field() -> None:
    assert [field.name for field in fields(KernelsSection)] == list(table.KERNELS)
