"""Whether what a model computes, and how far training moves it, depends on its width and depth.

The coordinate check of Yang et al. 2022 (arXiv 2203.03466, appendix D), on both sides of a growth.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from megatron.core.utils import unwrap_model

from megatron_grow.benchmark.gang import Gang
from megatron_grow.benchmark.report import Report
from megatron_grow.config.grow import GrowSection
from megatron_grow.config.model import ModelConfig
from megatron_grow.config.parallel import ParallelConfig
from megatron_grow.config.run import RunConfig
from megatron_grow.config.sections import ScheduleSection, TrainSection
from megatron_grow.config.stages import StageSection, override
from megatron_grow.data.tokenizers.vocabulary import with_vocabulary
from megatron_grow.growth.filling import fresh, grown
from megatron_grow.growth.plan import growth, initialisation
from megatron_grow.inputs.errors import UserError
from megatron_grow.live.stage import LiveStage
from megatron_grow.methods.base import Context
from megatron_grow.model.architectures import architecture_of
from megatron_grow.model.probes import Probe
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.parallel import cpu, process_groups
from megatron_grow.parametrization.table import parametrized, run_parametrization
from megatron_grow.train.loop import Loop

Sizes = dict[tuple[str, str], float]
"""Root mean squares, by a moment of :data:`MOMENTS` and a quantity."""

MOMENTS = {
    "begins": "at first",
    "moves": "change",
    "grows": "grown",
    "moves on": "change since",
}
"""What is measured, in its order, and what pictures and tables call it: a small model as it begins,
what training changes; the same of the grown model."""
BATCH, LENGTH = 8, 32
Growth = Literal["depth", "width"]
"""From no layers to all, or from half the width, in half as many heads, to the whole."""

_Seen = dict[str, list[torch.Tensor]]
"""What a model computes of one batch, by quantity: of the residual stream behind the last layer, of
branches that of all layers."""


@dataclass(frozen=True)
class Sweep:
    """Models of several sizes along one axis."""

    along: str
    """``width`` or ``depth``."""
    sizes: tuple[int, ...]
    found: tuple[Sizes, ...]
    """Of each size."""

    def values(self, moment: str, quantity: str) -> list[float]:
        """Of each size."""
        return [sizes[moment, quantity] for sizes in self.found]

    def slope(self, moment: str, quantity: str) -> float:
        """How a quantity goes with the size: the exponent of the power that fits best."""
        logs = np.log(self.sizes), np.log(self.values(moment, quantity))
        return float(np.polyfit(*logs, 1)[0])

    @property
    def measured(self) -> list[tuple[str, str]]:
        """Moments and quantities that all of its models have."""
        common = set.intersection(*(set(sizes) for sizes in self.found))
        return [key for key in self.found[-1] if key in common]


def measure(
    config: RunConfig,
    sizes: Mapping[str, Sequence[int]],
    steps: int,
    grows: Growth = "depth",
) -> list[Sweep]:
    """One sweep for each axis of which there are several sizes, on a rank of its own.

    Args:
        config: the run whose model, parametrization and optimizer are checked.
        sizes: from small to large, by axis: ``width`` and ``depth``.
        steps: before the growth, and again after it.
        grows: in what.

    Raises:
        UserError: a model that cannot be checked, or a size that it cannot have.
    """
    if not architecture_of(config.model).has_example:
        raise UserError(
            f"model.architecture={config.model.architecture} does not say what a text is to it "
            "(Architecture.example), and is not checked"
        )
    if config.model.vocab_size is None:
        config = replace(config, model=with_vocabulary(config.model, config.data))
    sizes = {along: sorted({*found}) for along, found in sizes.items() if len({*found}) > 1}
    if not sizes or steps < 1:
        raise UserError("a check needs two widths, or two depths, and a step")
    for along, found in sizes.items():
        *_, largest = _configs(config, along, found, steps, grows)
        if along == "width":
            parametrized(largest)
    with Gang(Coordinates) as gang:
        return [
            gang.call("sweep", config, along, found, steps, grows)[0]
            for along, found in sizes.items()
        ]


class Coordinates:
    """Trains small models on one rank, and looks at what they compute."""

    def __init__(self) -> None:
        process_groups.start()

    def sweep(
        self,
        config: RunConfig,
        along: str,
        sizes: Sequence[int],
        steps: int,
        grows: Growth = "depth",
    ) -> Sweep:
        """Models that are all ``config``'s but for one size.

        Args:
            config: as for :func:`measure`, with its vocabulary.
            along: ``width`` or ``depth``.
            sizes: from small to large.
            steps: before the growth, and again after it.
            grows: in what.
        """
        found = [self.measure(each) for each in _configs(config, along, sizes, steps, grows)]
        return Sweep(along, tuple(sizes), tuple(found))

    def measure(self, config: RunConfig) -> Sizes:
        """The sizes of what one run computes, before and after its growth."""
        first, second = stages = config.resolve(1)
        depth, seed = config.model.num_layers, config.run.seed
        tensors_of = run_parametrization(config).tensors
        plan = initialisation(first.model, depth, seed, tensors_of)
        live = fresh(first, config, plan)
        begins = _seen(live)
        _train(Context(config, stages, live, plan, 0))
        moved = _seen(live)
        plan = growth(
            first.model,
            second.model,
            second.grow,
            target_depth=depth,
            seed=seed,
            optimizer=optimizer_of(config.optimizer),
            tensors_of=tensors_of,
        )
        live, _ = grown(live, second, config, plan)
        grows = _seen(live)
        _train(Context(config, stages, live, plan, second.first_step))
        moved_on = _seen(live)
        live.release()
        found = (begins, _change(begins, moved), grows, _change(grows, moved_on))
        return {
            (moment, quantity): _root_mean_square(values)
            for moment, seen in zip(MOMENTS, found, strict=True)
            for quantity, values in seen.items()
        }


def _configs(
    config: RunConfig, along: str, sizes: Sequence[int], steps: int, grows: Growth
) -> Iterator[RunConfig]:
    """Short runs of ``config``'s model in several sizes."""
    for size in sizes:
        model = config.model
        if along == "width":
            # The number of heads stays: they grow with the width, as the feed-forward layer does.
            wider = size / model.hidden_size
            sized = {"hidden_size": size} | {
                name: round(value * wider)
                for name in ("kv_channels", "ffn_hidden_size")
                if (value := getattr(model, name))
            }
        else:
            sized = {"num_layers": size}
        model = override(model, sized, "model")
        yield _short_run(replace(config, model=model), steps, grows)


def _short_run(config: RunConfig, steps: int, grows: Growth) -> RunConfig:
    """It grows once, at a constant rate."""
    model = config.model
    small, grow = {
        "depth": ({"num_layers": 0}, GrowSection(depth="random")),
        "width": (_half_as_wide(model), GrowSection(recipe="hypercloning")),
    }[grows]
    config = replace(
        config,
        parallel=ParallelConfig(),
        train=TrainSection(
            train_iters=2 * steps,
            global_batch_size=BATCH,
            micro_batch_size=BATCH,
            seq_length=min(LENGTH, model.max_position_embeddings),
        ),
        schedule=ScheduleSection(lr_warmup_fraction=0.0, lr_decay_style="constant"),
        stages=[
            StageSection(until=steps, model=small),
            StageSection(grow=grow),
        ],
    )
    # One of the sizes may be the base model's: there a rule has nothing to do.
    found = run_parametrization(config)
    return replace(config, model=found.completed(model, found.target))


def _half_as_wide(model: ModelConfig) -> dict[str, Any]:
    """Fields of a model with half the heads of the same size."""
    return {
        "hidden_size": model.hidden_size // 2,
        "ffn_hidden_size": model.ffn_size // 2,
        "num_attention_heads": model.num_attention_heads // 2,
        "num_query_groups": max(1, model.query_groups // 2),
        "kv_channels": model.head_dim,
    }


def report(sweeps: Sequence[Sweep], title: str) -> Report:
    """A table of all sizes, and of the powers of width or depth that they go with."""
    most = max(len(sweep.sizes) for sweep in sweeps)
    rows, values = [], {}
    for sweep in sweeps:
        sizes = [str(size) for size in sweep.sizes]
        rows.append([f"[bold]{sweep.along}", "", *sizes, *[""] * (most - len(sizes)), "power"])
        for moment, quantity in sweep.measured:
            numbers = sweep.values(moment, quantity)
            slope = sweep.slope(moment, quantity)
            values[f"{sweep.along}/{moment}/{quantity}"] = {
                "sizes": sweep.sizes,
                "values": numbers,
                "power": slope,
            }
            shown = [f"{number:.3g}" for number in numbers]
            shown += [""] * (most - len(shown))
            rows.append([MOMENTS[moment], quantity, *shown, f"{slope:+.2f}"])
    return Report(title, ["root mean squares", "of", *[""] * most, ""], rows, values)


def _train(ctx: Context) -> None:
    for _ in Loop(ctx).steps(_batches(ctx.run)):
        pass


def _batches(config: RunConfig) -> Iterator[dict[str, torch.Tensor]]:
    """One batch, again and again, in which a token mostly decides the next."""
    while True:
        tokens = _tokens(config.model, config.train.seq_length + 1)
        yield dict(architecture_of(config.model).example(tokens))


def _tokens(model: ModelConfig, length: int) -> torch.Tensor:
    """(batch, length)."""
    generator = torch.Generator().manual_seed(0)
    jumps = torch.randint(1, 4, (BATCH, length), generator=generator)
    return (jumps.cumsum(1) * 7) % model.vocabulary


@torch.no_grad()
def _seen(live: LiveStage) -> _Seen:
    """What a stage computes of the batch."""
    (chunk,), model = live.chunks, live.stage.model
    architecture, seen = architecture_of(model), defaultdict[str, list[torch.Tensor]](list)

    def see(probe: Probe, _: torch.nn.Module, inputs: tuple, output: Any) -> None:
        if probe.name == "residual_stream":  # the last layer's stays
            seen[probe.name].clear()
        seen[probe.name].append(probe.values(inputs, output).clone())

    probes = architecture.probes(unwrap_model(chunk))
    handles = [
        probe.module.register_forward_hook(partial(see, probe))
        for probe in probes
        if probe.quantity == "activation"
    ]
    tokens = _tokens(model, live.stage.batch.seq_length).to(cpu.device())
    seen["logits"].append(architecture.logits(chunk.eval(), tokens))
    for handle in handles:
        handle.remove()
    return dict(seen)


def _change(before: _Seen, after: _Seen) -> _Seen:
    return {
        name: [new - old for old, new in zip(before[name], after[name], strict=True)]
        for name in after
    }


def _root_mean_square(values: list[torch.Tensor]) -> float:
    squares = sum(float(each.double().square().sum()) for each in values)
    return float(np.sqrt(squares / sum(each.numel() for each in values)))
