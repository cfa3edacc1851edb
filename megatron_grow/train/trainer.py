"""The run: stages one after another, in the same processes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch.utils.data import Dataset

from megatron_grow.checkpoint.record import GrowthEvent, Record
from megatron_grow.checkpoint.save import save
from megatron_grow.config.run import to_yaml
from megatron_grow.config.stages import Stage
from megatron_grow.cost.flops import flops_at_step
from megatron_grow.cost.parameters import count_parameters
from megatron_grow.data.loader import micro_batches
from megatron_grow.live.stage import Batches, LiveStage
from megatron_grow.model.architectures import architecture_of
from megatron_grow.optim.schedule import LearningRateSchedule
from megatron_grow.optim.state import get_step, set_step
from megatron_grow.parallel.agreement import any_rank, sum_over_ranks, together
from megatron_grow.train.console import Console
from megatron_grow.train.finite import DivergedError, Finding, FiniteGuard, find_in_state
from megatron_grow.train.metrics import MetricsLog
from megatron_grow.train.preflight import Prepared
from megatron_grow.train.signals import StopRequest
from megatron_grow.train.transition import begin, grow


class Trainer:
    """Trains a prepared run from its start, or its checkpoint, to its end."""

    def __init__(
        self, prepared: Prepared, console: Console, metrics: MetricsLog | None, stop: StopRequest
    ) -> None:
        """Take a run that has passed its checks; ``metrics`` on rank 0 alone."""
        self.config, self.stages = prepared.config, prepared.stages
        self.plans, self.start, self.choice = prepared.plans, prepared.start, prepared.choice
        self.corpora, self.holder = prepared.corpora, prepared.holder
        self.console, self.metrics, self.stop = console, metrics, stop
        train = self.config.train
        self.schedule = LearningRateSchedule(
            self.config.schedule, self.config.optimizer, train.train_iters
        )
        self.architecture = architecture_of(self.config.model)
        self.datasets = self.architecture.datasets(
            prepared.data, self.config, prepared.train_samples
        )
        self.step = 0
        self.growths: list[GrowthEvent] = []
        self.guard = FiniteGuard(train, prepared.resumed.skipped_iters if prepared.resumed else 0)
        self._saved: tuple[int, Path] | None = None
        self._evaluated: tuple[int | None, float | None] = (None, None)

    def run(self) -> bool:
        """Train; True if the run reached its end, False if it saved and stopped on request.

        Raises:
            DivergedError: what the run has computed is not finite; it has not been saved.
        """
        live = self._resume() if self.start else self._begin()
        while self._train_stage(live):
            if live.stage is self.stages[-1]:
                self._save(live)
                return True
            loss = self._evaluate(live)  # known already unless the run resumed right here
            if self.stop.poll():  # a growth is not left half-way
                break
            live = self._grow(live, loss)
        self._save(live)
        return False

    # Beginnings

    def _begin(self) -> LiveStage:
        live = begin(self.stages[0], self.config, self.plans[0])
        self._watch(live)
        return live

    def _resume(self) -> LiveStage:
        assert self.start is not None
        start = self.start
        stage = self.stages[start.stage]
        live = LiveStage(stage, self.config, start.plan.tensors)
        self._watch(live)
        together(lambda: start.load(live.pieces()))
        live.publish()
        set_step(live.optimizer, start.optimizer_step)
        self.step, self.growths = start.step, start.growths
        live.fade_in(self.plans[stage.index].fading_in, self.step)
        if start.resumes:
            self._saved = self.step, start.path
            self.console.message(f"resumed from {start.path} at step {self.step}")
            if self._due(stage) and self._unmeasured(stage):
                self._evaluate(live)  # the run was stopped before it could
        else:
            self.console.message(
                f"loaded {start.path} ({start.plan.summary}); begins at step {self.step}"
            )
        return live

    def _grow(self, live: LiveStage, loss_before: float | None) -> LiveStage:
        """Leave one stage for the next: tear down, build, move the state, go on."""
        before, stage = live.stage, self.stages[live.stage.index + 1]
        plan, world = self.plans[stage.index], dist.get_world_size()
        self._check_state(live)
        dist.barrier()
        began = time.perf_counter()
        grown, received = grow(live, stage, self.config, plan)
        self._watch(grown)
        dist.barrier()
        pause = time.perf_counter() - began
        layouts = before.parallel.describe(world), stage.parallel.describe(world)
        section = asdict(stage.grow) if stage.grow else None
        self.growths.append(
            GrowthEvent(
                self.step,
                stage.index,
                plan.summary,
                *layouts,
                section,
                plan.seed,
                asdict(before.model),
            )
        )
        row = {
            "event": "growth",
            "step": self.step,
            "stage": stage.index,
            "summary": plan.summary,
            "from_layers": before.model.num_layers,
            "to_layers": stage.model.num_layers,
            "from_layout": layouts[0],
            "to_layout": layouts[1],
            "from_batch": before.batch.describe(),
            "to_batch": stage.batch.describe(),
            "from_parameters": count_parameters(before.model),
            "to_parameters": count_parameters(stage.model),
            "bytes_moved": int(sum_over_ranks(received)),
            "pause_seconds": pause,
            "val_loss_before": loss_before,
            "val_loss_after": self._measure(grown),
        }
        self.console.growth(row)
        self._write(row)
        return grown

    # One stage

    def _train_stage(self, live: LiveStage) -> bool:
        """Train to the end of the stage; False if asked to stop before."""
        with self._batches(live, self.datasets.train, live.stage.tokens_at(self.step)) as batches:
            return self._train_on(live, batches)

    def _train_on(self, live: LiveStage, batches: Batches | None) -> bool:
        stage, config = live.stage, self.config
        losses, updates, began = torch.zeros(()), 0, time.perf_counter()
        logged = self.step
        if self.stop.poll():
            return False
        while self.step < stage.last_step:
            self.step += 1
            self.schedule.apply(live.optimizer, self.step, stage)
            loss, grad_norm = live.train_step(self.step, batches)
            if loss is not None:
                losses, updates = losses.to(loss.device) + loss, updates + 1
            due = self.step % config.train.log_interval == 0 or self.step == stage.last_step
            if due or self.stop.agreed:  # every step is in some row
                mean = live.mean_loss(losses, updates) if updates else math.nan
                step_time = (time.perf_counter() - began) / (self.step - logged)
                self._log(stage, mean, grad_norm, step_time)
                losses, updates, began = torch.zeros(()), 0, time.perf_counter()
                logged = self.step
            paused = time.perf_counter()
            if self._due(stage) and not self.stop.agreed:
                self._evaluate(live)
            if self.stop.agreed:
                return False
            interval = config.checkpoint.save_interval
            if interval and self.step % interval == 0:
                self._save(live)
            began += time.perf_counter() - paused
        return True

    @contextmanager
    def _batches(
        self, live: LiveStage, dataset: Dataset, first_token: int
    ) -> Iterator[Batches | None]:
        """Micro-batches of the live stage's length, from a place in the stream of tokens on."""
        if not live.needs_data():
            yield None
            return
        batch = live.stage.batch
        batches = micro_batches(
            self.architecture.cut(dataset, self.config.train.seq_length // batch.seq_length),
            first_sample=first_token // batch.seq_length,
            global_batch_size=batch.global_batch_size,
            micro_batch_size=batch.micro_batch_size,
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
            data_parallel_size=parallel_state.get_data_parallel_world_size(),
            num_workers=self.config.data.num_workers,
        )
        with closing(batches):
            yield batches

    # Guards

    def _watch(self, live: LiveStage) -> None:
        """Have a stage ask before its updates and between the batches of its evaluations."""
        live.allows_update = partial(self._allows_update, live)
        live.interrupted = self.stop.poll

    def _allows_update(self, live: LiveStage, losses: torch.Tensor, grad_norm: float) -> bool:
        refused = not self.guard.accepts(losses, grad_norm)
        self.stop.agreed, refused = any_rank(self.stop.asked, refused)
        if refused:
            self._report(live.stage, self.guard.refuse(live, losses))
        return not refused

    def _check_state(self, live: LiveStage) -> None:
        """Raise :class:`DivergedError` where the state is not finite; it is not worth saving."""
        found = find_in_state(live)
        if found is not None:
            self._report(live.stage, Finding(found, ends=True))

    def _report(self, stage: Stage, finding: Finding) -> None:
        """Report what is not finite; raise :class:`DivergedError` where that ends the run."""
        found, action = finding.what, "stop" if finding.ends else "skip"
        row = {"event": "not_finite", **self._progress(stage)}
        self._write({**row, "found": found, "action": action})
        if not finding.ends:
            self.console.warning(f"step {self.step}: {found}; no update was made")
            return
        way_out = "no checkpoint has been saved: begin again"
        if self._saved is not None:
            step, path = self._saved
            way_out = f"go on from step {step} ({path})"
        raise DivergedError(
            f"step {self.step}: {found}; the run stops and saves nothing; {way_out} with a lower "
            f"optimizer.lr{finding.advice}"
        )

    # What others see

    def _measure(self, live: LiveStage) -> float | None:
        """Validation loss, always over the same tokens; None where the run does not evaluate."""
        if not self.config.train.eval_iters or self.datasets.valid is None:
            return None
        with self._batches(live, self.datasets.valid, 0) as batches:
            return live.evaluate(batches, live.stage.eval_iters)

    def _due(self, stage: Stage) -> bool:
        """Whether the step that has just been done is one to evaluate after."""
        grown = stage.index > 0 and self.step == stage.first_step
        interval = self.config.train.eval_interval
        return grown or self.step == stage.last_step or self.step % interval == 0

    def _unmeasured(self, stage: Stage) -> bool:
        """Whether the rows so far lack the evaluation of this step."""
        log = self.metrics
        return any_rank(log is not None and not log.has_evaluation(self.step, stage.index))[0]

    def _evaluate(self, live: LiveStage) -> float | None:
        """Measure and report, once for each step; None where that was interrupted."""
        if self._evaluated[0] == self.step:
            return self._evaluated[1]
        loss = self._measure(live)
        if loss is not None:
            self._evaluated = (self.step, loss)
            row = {**self._progress(live.stage), "val_loss": loss}
            self.console.evaluation(row)
            self._write(row)
        return loss

    def _log(self, stage: Stage, loss: float, grad_norm: float, step_time: float) -> None:
        row = {
            **self._progress(stage),
            "loss": loss,
            "lr": self.schedule.lr(self.step, self.config.optimizer.lr, stage),
            "grad_norm": grad_norm,
            "tokens_per_second": stage.batch.tokens / step_time,
            "step_time": step_time,
        }
        self.console.train_row(row)
        self._write(row)

    def _progress(self, stage: Stage) -> dict[str, int]:
        return {
            "step": self.step,
            "stage": stage.index,
            "num_layers": stage.model.num_layers,
            "consumed_tokens": stage.tokens_at(self.step),
            "flops_total": flops_at_step(self.stages, self.step, "total"),
            "flops_block": flops_at_step(self.stages, self.step, "blocks"),
        }

    def _write(self, row: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.write(row)

    def _save(self, live: LiveStage) -> None:
        if self._saved is not None and self._saved[0] == self.step:
            return
        self._check_state(live)
        config, updates = self.config, get_step(live.optimizer)
        tokens = live.stage.tokens_at(self.step)
        record = Record(
            step=self.step,
            stage=live.stage.index,
            consumed_samples=tokens // config.train.seq_length,
            consumed_tokens=tokens,
            optimizer_step=self.step - self.guard.skipped if updates is None else updates,
            model=asdict(live.stage.model),
            precision=config.train.precision,
            config=asdict(config),
            growths=self.growths,
            parallel=asdict(live.stage.parallel),
            skipped_iters=self.guard.skipped,
            wandb_id=self.metrics.wandb_id if self.metrics else None,
            corpora=self.corpora,
            run_id=self.choice.run_id,
            begun_from=list(self.choice.begun_from),
        )
        path = save(
            config.checkpoint_dir,
            record,
            live.pieces(),
            live.tensors,
            with_optimizer=config.checkpoint.save_optimizer,
            keep_last=config.checkpoint.keep_last,
            holder=self.holder,
        )
        self._saved = self.step, path
        self.console.checkpoint(self.step, path)


def write_resolved_config(prepared: Prepared) -> None:
    """Leave the complete configuration beside the metrics; rank 0 alone."""
    directory = Path(prepared.config.run.output_dir)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.yaml").write_text(to_yaml(prepared.config))
