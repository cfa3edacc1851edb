"""One stage, live: its process groups, model, optimizer, and what can be done with them."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads

from megatron_grow.config.layer_sharing import groups_of
from megatron_grow.config.run import RunConfig
from megatron_grow.config.stages import Stage
from megatron_grow.live.check import check_fp8, check_model
from megatron_grow.live.correlation import Pair, differing, gradient_correlations
from megatron_grow.live.data_parallel import wrap_data_parallel
from megatron_grow.live.layers import Layers
from megatron_grow.live.multipliers import apply_multipliers
from megatron_grow.live.passes import Batches, Passes
from megatron_grow.live.pieces import (
    Piece,
    Shard,
    live_pieces,
    live_shards,
    write_back,
)
from megatron_grow.live.placement import tensors_of
from megatron_grow.live.sharing import SharedLayers
from megatron_grow.model.architectures import architecture_of
from megatron_grow.model.kernels.table import choose, use_kernels
from megatron_grow.optim import update
from megatron_grow.optim.builder import build_optimizer
from megatron_grow.optim.optimizers import optimizer_of
from megatron_grow.optim.state import set_step
from megatron_grow.parallel import cpu, process_groups
from megatron_grow.parametrization.table import multipliers_of_run
from megatron_grow.state.tensors import LogicalTensor


class LiveStage:
    """A model and its optimizer under one layout.

    It starts without values: :func:`filled` makes one that has them.
    """

    def __init__(self, stage: Stage, config: RunConfig, tensors: dict[str, LogicalTensor]) -> None:
        """Set up the layout of ``stage`` and build its model, of which ``tensors`` tells all."""
        self.stage = stage
        self.tensors = tensors
        self.updates = 0
        """Updates that the moments have seen; the same on every rank."""
        self._seed = config.run.seed
        self._optimizer = optimizer_of(config.optimizer)
        self._shards: list[Shard] | None = None
        self.groups_seconds = process_groups.set_up(stage.parallel, config.run.seed)
        """What this rank took to build and connect its process groups."""
        replicas = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
        sharded = (
            stage.parallel.use_distributed_optimizer
            and replicas > 1  # alone, it would only copy all gradients once more
            and self._optimizer.may_be_sharded(tensors.values())
        )
        chunks = architecture_of(stage.model).build(stage.model, stage.parallel, config.train)
        check_model(chunks, tensors, stage.model.architecture)
        check_fp8(chunks, config.train.fp8, stage.model.architecture)
        for chunk in chunks:
            apply_multipliers(chunk, tensors, stage.model)
        self.kernels = choose(config.kernels, cpu.device(), stage.parallel)
        """What is computed in fewer kernels."""
        use_kernels(chunks, self.kernels)
        groups = groups_of(stage.model.sharing or ())
        self.chunks = wrap_data_parallel(
            chunks,
            stage.parallel,
            distributed_optimizer=sharded,
            align_layers=stage.aligned_layers or bool(groups),
        )
        self.optimizer = build_optimizer(
            self.chunks,
            config.optimizer,
            tensors,
            tensors_of(self.chunks, tensors),
            multipliers_of_run(config, tensors),
            precision=config.train.precision,
            use_distributed_optimizer=sharded,
        )
        engine = self.chunks[0].config
        engine.finalize_model_grads_func = finalize_model_grads
        engine.grad_scale_func = self.optimizer.scale_loss
        self._passes = Passes(self.chunks, stage, config)
        self.objective = self._passes.objective
        self._layers = Layers(self.shards(), stage.parallel, stage.model.num_layers)
        self.share_layers(groups)
        self._elementwise = all(self._optimizer.rule(each).shards for each in tensors.values())

    def pieces(self) -> list[Piece]:
        """All state that this rank holds; writing to it changes the live state."""
        return live_pieces(self.shards())

    def shards(self) -> list[Shard]:
        """What this rank updates; writing to it changes the live state."""
        if self._shards is None:
            self._shards = live_shards(self.chunks, self.optimizer, self.tensors)
        return self._shards

    def share_layers(self, groups: Sequence[Sequence[int]], *, copy_first: bool = False) -> None:
        """Train the layers of each group as one from now on, and no others; every rank takes part.

        Args:
            groups: of layers, by number, in order, as :class:`.SharedLayers`. In a stage of more
                than one data-parallel rank they need :attr:`.Stage.aligned_layers`, or a shape that
                shares them.
            copy_first: whether to give each layer what its group's first has; else they are the
                same already.
        """
        self._shared_layers = SharedLayers(self._layers, groups)
        if copy_first:
            self._shared_layers.copy_first(state=True)
            self.write_back()

    @torch.no_grad()
    def scale_moments(self, layers: Collection[int], factor: float) -> None:
        """Make the optimizer's state of some layers that of a gradient ``factor`` times as large.

        As a growth does (:func:`~megatron_grow.growth.optimizer_state.moment_map`).
        """
        for shard in self.shards():
            if shard.layer in layers:
                powers = self._optimizer.rule(self.tensors[shard.key]).states
                for kind, values in shard.state.items():
                    values.mul_(factor ** powers[kind])

    def gradient_correlations(self, pairs: Sequence[Pair]) -> list[float]:
        """Of two layers each, as :func:`.correlation.gradient_correlations`; before they are
        summed, and of layers as :meth:`share_layers` needs them."""
        return gradient_correlations(self._layers, pairs)

    def differing_layers(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Those of ``pairs`` of shared layers that are not the same; none, unless something has
        updated one and not the other. Every rank takes part."""
        return differing(self._layers, pairs)

    def write_back(self) -> None:
        """Make the model's weights those of the main parameters."""
        write_back(self.chunks, self.optimizer)

    def count_from(self, updates: int) -> None:
        """Go on counting from ``updates``: what the moments have seen, for Adam's correction."""
        self.updates = updates
        set_step(self.optimizer, updates)

    def forward_backward(self, step: int, batches: Batches | None) -> torch.Tensor:
        """The gradients of one step, reduced over data-parallel ranks.

        Those of layers that share their parameters are each layer's own before
        :meth:`share_gradients`.

        Args:
            step: global step, from 1.
            batches: this rank's micro-batches; None where the rank needs none.

        Returns:
            What this rank's micro-batches add up to (:meth:`.Objective.means`).
        """
        self._seed_dropout(step)
        for chunk in self.chunks:
            chunk.train()
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        totals = self._passes.run(batches, forward_only=False)
        self.optimizer.prepare_grads()
        return totals

    def share_gradients(self) -> None:
        """Make the gradients ready for an update, where layers share their parameters."""
        self._shared_layers.sum_gradients()

    def gradient_norm(self) -> float:
        """Over all parameters, the same on every rank."""
        return float(self.optimizer.get_grad_norm())

    @torch.no_grad()
    def update(self, grad_norm: float, edit: Callable[[], None] = lambda: None) -> None:
        """Clip the gradients by their norm and take the optimizer's step.

        Args:
            grad_norm: of all ranks.
            edit: called when main parameters and optimizer state have changed, and the model's
                weights not yet.
        """
        update.clip(self.optimizer, grad_norm)
        update.step(self.optimizer)
        if not self._elementwise:  # a matrix's update may depend on which others go with it
            self._shared_layers.copy_first(state=False)
        self.updates += 1
        edit()
        write_back(self.chunks, self.optimizer, overlapped=True)

    @torch.no_grad()
    def evaluate(
        self,
        batches: Batches | None,
        iterations: int,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> dict[str, float] | None:
        """Means over ``iterations`` global batches, as :meth:`.Objective.means`.

        None where it was ``interrupted``, which is asked on every rank between the batches; its
        answer is the same on all.
        """
        totals = self.objective.zeros()
        with self._parameters_gathered():
            for chunk in self.chunks:
                chunk.eval()
            for _ in range(iterations):
                if interrupted():
                    return None
                totals += self._passes.run(batches, forward_only=True)
        return self.objective.means(totals)

    def needs_data(self) -> bool:
        """Whether this rank reads micro-batches."""
        return self._passes.reads

    def release(self) -> None:
        """Let go of model, gradients and groups; pieces that were taken keep their memory."""
        self._shards = None
        del self._shared_layers, self._layers
        _cut_cycles(self.chunks)
        self.chunks.clear()
        del self.optimizer
        gc.collect()  # finds the optimizer
        gc.collect()  # finds the chunks, which the optimizer held
        process_groups.tear_down()

    def _seed_dropout(self, step: int) -> None:
        """Make dropout a function of the step, so that a resumed run needs no generator state."""
        model = self.stage.model
        if model.hidden_dropout == model.attention_dropout == 0.0:
            return
        seed = self._seed + 1_000_003 * step
        seed += 100 * parallel_state.get_pipeline_model_parallel_rank()
        seed += 10_000 * parallel_state.get_data_parallel_rank(with_context_parallel=True)
        tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)

    @contextmanager
    def _parameters_gathered(self) -> Iterator[None]:
        """Finish parameter gathers that overlap with the forward pass, for the time of a block."""
        hooked = [chunk for chunk in self.chunks if chunk.use_forward_hook]
        for chunk in hooked:
            chunk.disable_forward_pre_hook()
        try:
            yield
        finally:
            for chunk in hooked:
                chunk.enable_forward_pre_hook()


def filled(
    stage: Stage,
    config: RunConfig,
    tensors: dict[str, LogicalTensor],
    fill: Callable[[list[Piece]], object],
    updates: int,
) -> LiveStage:
    """A live stage with values; every rank takes part.

    Args:
        stage: its shape and layout.
        config: the run.
        tensors: of its model.
        fill: writes to all pieces of this rank.
        updates: that the moments it writes have seen.
    """
    live = LiveStage(stage, config, tensors)
    of_layers = [[*same] for _, same in groupby(live.pieces(), attrgetter("key", "kind", "box"))]
    fill([first for first, *_ in of_layers])
    for first, *others in of_layers:
        for other in others:
            other.data.copy_(first.data)
    live.write_back()
    live.count_from(updates)
    return live


def _cut_cycles(chunks: list[DistributedDataParallel]) -> None:
    """Let Python's collector find ``chunks``.

    Parameters of the sharded optimizer hold, by their autograd history, hooks that hold the chunks.
    The collector does not see that part of the circle.
    """
    for chunk in chunks:
        chunk.config.grad_scale_func = None
        chunk.grad_accs.clear()
