"""A picture of what a run costs while it goes on."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from megatron_grow.planning.plan import RunPlan

_RUN, _FIXED, _GROWTH = "tab:blue", "0.35", "tab:orange"


def figure(plan: RunPlan) -> bytes:
    """A PNG: GPU-hours, or money where the plan has a price, over tokens."""
    factor = plan.world_size / 3600 * (plan.price or 1.0)
    tokens, costs = [0.0], [0.0]
    picture = Figure(figsize=(6.4, 4.2), layout="constrained")
    panel = picture.subplots()
    pauses = [0.0, *(growth.pause for growth in plan.growths)]
    for planned, pause in zip(plan.stages, pauses, strict=True):
        stage = planned.stage
        if stage.index:
            panel.axvline(stage.first_token, color=_GROWTH, linestyle=":", linewidth=1.4)
        tokens += [stage.first_token, stage.tokens_at(stage.last_step)]
        costs += [costs[-1] + factor * pause, costs[-1] + factor * (pause + planned.seconds)]
    whole = factor * plan.fixed_size_seconds
    panel.plot([0, plan.tokens], [0, whole], color=_FIXED, label="fixed size", linewidth=1.8)
    panel.plot(tokens, costs, color=_RUN, label=plan.config.run.name, linewidth=1.8)
    arrow = {"arrowstyle": "<->", "color": _RUN, "shrinkA": 0, "shrinkB": 0}
    panel.annotate("", (plan.tokens, costs[-1]), (plan.tokens, whole), arrowprops=arrow)
    panel.annotate(
        f"{1 - costs[-1] / whole:.0%} saved",
        (plan.tokens, (costs[-1] + whole) / 2),
        xytext=(-6, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        color=_RUN,
    )
    panel.set_xlabel("Tokens")
    panel.set_ylabel("Money" if plan.price else "GPU-hours")
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    png = io.BytesIO()
    picture.savefig(png, format="png", dpi=150)
    return png.getvalue()
