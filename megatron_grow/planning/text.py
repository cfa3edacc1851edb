"""A plan as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.filesize import decimal

from megatron_grow.cost.parameters import count_parameters
from megatron_grow.cost.step_time import model_flops
from megatron_grow.planning.advice import advice
from megatron_grow.planning.duration import duration
from megatron_grow.planning.growths import FRESH_PER_SECOND, GrowthForecast
from megatron_grow.planning.plan import PARTS, RunPlan, StagePlan
from megatron_grow.planning.search import FILLED


def text(plan: RunPlan) -> str:
    """All that a plan says, and on what it rests."""
    parts = [
        f"# {plan.config.run.name} on {plan.world_size} {plan.gpu}",
        _table("", [f"stage {each.stage.index}" for each in plan.stages], _STAGE, plan.stages),
        *[_why(each) for each in plan.stages],
        _recomputation(plan),
    ]
    if plan.growths:
        columns = [f"after step {growth.step:,}" for growth in plan.growths]
        parts.append(_table("growth", columns, _GROWTH, plan.growths))
    parts += [_cost(plan), _advised(plan), _assumed(plan)]
    return "\n\n".join(parts) + "\n"


def _table(head: str, columns: Sequence[str], rows: dict[str, Callable], of: Sequence) -> str:
    lines = [[head, *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(value(each) for each in of)] for name, value in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _peak(stage: StagePlan) -> str:
    chosen = stage.found.chosen
    share = chosen.peak.total / chosen.machine.device.memory
    return f"**{decimal(chosen.peak.total)}**, {100 * share:.0f} %"


_STAGE: dict[str, Callable[[StagePlan], str]] = {
    "steps": lambda s: f"{s.stage.first_step:,} - {s.stage.last_step:,}",
    "layers": lambda s: str(s.stage.model.num_layers),
    "parameters": lambda s: f"{count_parameters(s.stage.model):,}",
    "FLOPs of a step": lambda s: f"{model_flops(s.found.chosen.step):.4g}",
    "layout": lambda s: s.found.chosen.describe(),
    "memory, fullest rank": _peak,
    "- weights": lambda s: decimal(s.found.chosen.peak.states.weights),
    "- gradients": lambda s: decimal(s.found.chosen.peak.states.gradients),
    "- main parameters": lambda s: decimal(s.found.chosen.peak.states.main_params),
    "- optimizer state": lambda s: decimal(s.found.chosen.peak.states.moments),
    "- activations": lambda s: decimal(s.found.chosen.peak.activations),
    "- working memory": lambda s: decimal(s.found.chosen.peak.working),
    "step": lambda s: f"**{duration(s.found.chosen.time.total)}**",
    "- computation": lambda s: duration(s.found.chosen.time.compute),
    "- pipeline bubble": lambda s: duration(s.found.chosen.time.bubble),
    "- tensor-parallel sums": lambda s: duration(s.found.chosen.time.tensor),
    "- pipeline sends": lambda s: duration(s.found.chosen.time.pipeline),
    "- data-parallel, not hidden": lambda s: duration(s.found.chosen.time.data),
    "- update": lambda s: duration(s.found.chosen.time.update),
    "tokens/s": lambda s: f"{s.found.chosen.tokens_per_second:,.0f}",
    "MFU": lambda s: f"{100 * s.found.chosen.utilisation:.1f} %",
    "efficiency of computation": lambda s: f"{100 * s.efficiency.share:.0f} %",
    "time": lambda s: duration(s.seconds),
}
_GROWTH: dict[str, Callable[[GrowthForecast], str]] = {
    "parameters": lambda g: f"{g.source_parameters:,} -> {g.target_parameters:,}",
    "state carried, at most": lambda g: decimal(g.carried_bytes),
    "received by a rank, at most": lambda g: decimal(g.received_bytes),
    "pause, without NCCL's groups": lambda g: duration(g.pause),
    "memory, fullest rank": lambda g: decimal(g.memory),
}


def _why(stage: StagePlan) -> str:
    found, index = stage.found, stage.stage.index
    chosen = found.chosen.describe()
    lines = [f"Stage {index}: {chosen}, of {found.considered} the fastest that fits.", ""]
    lines += [f"- {reason}" for reason in found.against]
    if found.why_not_written is not None:
        lines.append(f"- the run file's: {found.why_not_written}")
    elif found.written is not None and found.written.describe() != chosen:
        time = duration(found.written.time.total)
        fits = "fits" if found.written.fits else "does not fit"
        lines.append(f"- the run file's, {found.written.describe()}: {time} a step, {fits}")
    return "\n".join(lines)


def _recomputation(plan: RunPlan) -> str:
    full = plan.train.recompute_granularity == "full"
    ours, theirs = ("recomputed", "kept") if full else ("kept", "recomputed")
    steps = sum(stage.seconds for stage in plan.stages)
    if plan.seconds_otherwise is None:
        return f"Activations are {ours}: {theirs}, the run would fit in no layout."
    longer = 100 * (plan.seconds_otherwise / steps - 1)
    return f"Activations are {ours}: {theirs}, all steps would take {longer:.1f} % longer."


def _cost(plan: RunPlan) -> str:
    seconds, fixed = plan.seconds, plan.fixed_size_seconds
    rows = [["", "this run", "fixed size", "saved"], ["---"] * 4]
    for part, name in zip(PARTS, ("whole model", "layers alone"), strict=True):
        ours, theirs = plan.flops(part), plan.fixed_size_flops(part)
        rows.append([f"FLOPs, {name}", f"{ours:.4g}", f"{theirs:.4g}", _saved(ours, theirs)])
    rows.append(["wall time", duration(seconds), duration(fixed), _saved(seconds, fixed)])
    hours = [plan.gpu_hours(seconds), plan.gpu_hours(fixed)]
    rows.append(["GPU-hours", *(f"{each:,.0f}" for each in hours), f"{hours[1] - hours[0]:,.0f}"])
    if plan.price is not None:
        money = [plan.price * each for each in hours]
        rows.append(["money", *(f"{each:,.0f}" for each in money), f"{money[1] - money[0]:,.0f}"])
    head = f"{plan.tokens:.4g} tokens, as 6 FLOPs for each parameter and token:\n\n"
    return head + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _saved(ours: float, theirs: float) -> str:
    return f"{100 * (1 - ours / theirs):.1f} %" if theirs else "-"


def _advised(plan: RunPlan) -> str:
    return f"For the run file, where {{}} is to be left out:\n\n```yaml\n{advice(plan)}```"


def _assumed(plan: RunPlan) -> str:
    machine = plan.stages[0].found.chosen.machine
    device = machine.device
    network, reached = machine.network / 1e9, 100 * machine.link_efficiency
    latency = duration(machine.latency)
    there = decimal(round(device.memory))
    lines = ["What this rests on:", ""]
    for stage in plan.stages:
        share = f"{100 * stage.efficiency.share:.0f} %"
        lines.append(
            f"- Stage {stage.stage.index} computes at {share} of {device.bf16 / 1e12:g} TFLOPS "
            f"({stage.efficiency.source})."
        )
    lines += [
        "- That share is taken to be the same for all layouts and micro-batches; narrow parts and "
        "short micro-batches reach less.",
        f"- {plan.gpu}: {device.source}. Between nodes {network:g} GB/s for each GPU; links reach "
        f"{reached:.0f} % of that, and a message takes {latency} at least.",
        f"- A rank fits that fills at most {100 * FILLED:.0f} % of {there}.",
        "- Not counted: kernel launches (small stages wait on them), data, evaluations, "
        "checkpoints, failures; NCCL's buffers in memory, and the time it takes to build its "
        "groups at a growth.",
        "- The kernels of docs/gpu.md are used, but for those that the run file forbids.",
        "- Tensor-parallel sums are taken not to be hidden; data-parallel communication is hidden "
        "by one micro-batch where overlap_grad_reduce and overlap_param_gather say so.",
    ]
    if plan.growths:
        lines.append(
            f"- Fresh values are made at {FRESH_PER_SECOND / 1e6:.0f} million a second and rank."
        )
    if any(stage.stage.rule for stage in plan.stages):
        lines.append("- A stage that a rule may end is counted to its at_most.")
    if any(each.stage.parallel.context_parallel_size > 1 for each in plan.stages):
        lines.append("- The exchange of context-parallel ranks is not counted.")
    return "\n".join(lines)
