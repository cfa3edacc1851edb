"""Stages of runs that begin with few layers of twelve, or with none."""

from __future__ import annotations

from typing import Any

from driver import Stages

LAYERS = 12


def scaled(source: int, target: int = LAYERS) -> dict[str, Any]:
    """Each layer's copies behind each other, each adding its part of what the layer added."""
    layers = [i * source // target for i in range(target)]
    scale = [round(1 / layers.count(layer), 6) for layer in layers]
    return {"operator": "explicit", "layers": layers, "scale": scale}


def silent() -> dict[str, Any]:
    """All layers anew, which add nothing at first."""
    return {"operator": "explicit", "layers": [-1] * LAYERS, "zero": list(range(LAYERS))}


def grown(source: int, depth: Any = None, at: float = 0.75, **last: Any) -> Stages:
    """A few layers until a share of the steps, then all."""
    depth = depth or ("copying_stack" if source else "random")
    grow = {"depth": depth, **last.pop("grow", {})}
    return [{"until": at, "model": {"num_layers": source}}, {"grow": grow, **last}]


def grown_from(
    small: dict[str, Any], grow: dict[str, Any], at: float, seq_length: int | None = None
) -> Stages:
    """A smaller model until a share of the steps, on shorter sequences if asked."""
    first: dict[str, Any] = {"until": at, "model": small}
    if seq_length:
        first["train"] = {"seq_length": seq_length}
    return [first, {"grow": grow}]


def ladder(*rungs: tuple[int, float], depth: Any = "copying_stack", **grow: Any) -> Stages:
    """Several growths: so many layers until a share of the steps, and so on; then all."""
    (first, until), *others = rungs
    growth = {"grow": {"depth": depth, **grow}}
    middle = [{"until": end, "model": {"num_layers": n}, **growth} for n, end in others]
    return [{"until": until, "model": {"num_layers": first}}, *middle, growth]
