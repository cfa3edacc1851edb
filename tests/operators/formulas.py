"""What each operator makes of a model, from its paper's formula: loops over whole numpy arrays.

Shares no code with plans, maps or the axis table. An entry that is drawn afresh is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import numpy as np

from megatron_grow.config.model import ModelConfig

FRESH = -1
NAN = float("nan")

# The axes of each array, one letter for each: (l)ayer, key/value (g)roup, query (p)er group, head
# (d)imension, (h)idden, (f)eed-forward, gate or (u)p, (v)ocabulary, position (t). A capital letter
# is an axis that the array reads, so that copies share its weights.
LAYER_AXES = {
    "norm1": "lh",
    "norm1_bias": "lh",
    "q": "lgpdH",
    "k": "lgdH",
    "v": "lgdH",
    "q_bias": "lgpd",
    "k_bias": "lgd",
    "v_bias": "lgd",
    "out": "lhGPD",
    "out_bias": "lh",
    "norm2": "lh",
    "norm2_bias": "lh",
    "up": "lfH",
    "up_bias": "lf",
    "down": "lhF",
    "down_bias": "lh",
}
GAINS = ("norm1", "norm2", "last_norm")
NORMS = (*GAINS, *(f"{name}_bias" for name in GAINS))
ENDS = ("out", "out_bias", "down", "down_bias")


@dataclass(frozen=True)
class Net:
    """A GPT as plain arrays, by name."""

    axes: dict[str, str]
    arrays: dict[str, np.ndarray]

    def map(self, change: Callable[[str, str, np.ndarray], np.ndarray]) -> Net:
        """The same with each array changed, by its name and axes."""
        return replace(self, arrays={n: change(n, self.axes[n], a) for n, a in self.arrays.items()})


def unpacked(model: ModelConfig, stored: dict[str, Any]) -> Net:
    """The arrays in Megatron's checkpoint; its QKV holds each group's queries, key and value."""
    depth, d, groups = model.num_layers, model.head_dim, model.query_groups
    per_group, hidden = model.num_attention_heads // groups, model.hidden_size
    axes, arrays = dict(LAYER_AXES), {}
    tied = model.share_embeddings_and_output_weights
    axes |= {"embedding": "vh", "positions": "th", "head": "vH"}
    axes |= dict.fromkeys(("last_norm", "last_norm_bias"), "H" if tied else "h")
    if model.gated:
        axes |= {"up": "lufH"}
    attention, mlp = "decoder.layers.self_attention.", "decoder.layers.mlp."
    plain = {
        "embedding.word_embeddings.weight": "embedding",
        "embedding.position_embeddings.weight": "positions",
        "output_layer.weight": "head",
        "decoder.final_layernorm.weight": "last_norm",
        "decoder.final_layernorm.bias": "last_norm_bias",
        f"{attention}linear_qkv.layer_norm_weight": "norm1",
        f"{attention}linear_qkv.layer_norm_bias": "norm1_bias",
        f"{attention}linear_proj.bias": "out_bias",
        f"{mlp}linear_fc1.layer_norm_weight": "norm2",
        f"{mlp}linear_fc1.layer_norm_bias": "norm2_bias",
        f"{mlp}linear_fc1.bias": "up_bias",
        f"{mlp}linear_fc2.weight": "down",
        f"{mlp}linear_fc2.bias": "down_bias",
    }
    for key, value in stored.items():
        array = np.asarray(value)
        if key in plain:
            arrays[plain[key]] = array
        elif key.endswith("linear_proj.weight"):
            arrays["out"] = array.reshape(depth, hidden, groups, per_group, d)
        elif key.endswith("linear_fc1.weight"):
            arrays["up"] = array.reshape(depth, *((2,) if model.gated else ()), -1, hidden)
        else:
            rest, suffix = ((hidden,), "") if key.endswith("weight") else ((), "_bias")
            heads = array.reshape(depth, groups, per_group + 2, d, *rest)
            arrays[f"q{suffix}"] = heads[:, :, :per_group]
            arrays[f"k{suffix}"] = heads[:, :, per_group]
            arrays[f"v{suffix}"] = heads[:, :, per_group + 1]
    return Net(axes, arrays)


def fill_of(name: str, matrices: float) -> float:
    """How a fresh entry begins: gains at 1, biases at 0."""
    return 1.0 if name in GAINS else 0.0 if name.endswith("bias") else matrices


def pick(
    array: np.ndarray,
    axis: int,
    index: Sequence[int],
    factors: Sequence[float] | None,
    fill: float,
) -> np.ndarray:
    """Entry i is entry ``index[i]`` times ``factors[i]``, or ``fill``."""
    parts = []
    for i, source in enumerate(index):
        part = np.take(array, max(source, 0), axis)
        factor = 1.0 if factors is None else factors[i]
        parts.append(np.full_like(part, fill) if source == FRESH else part * factor)
    return np.stack(parts, axis)


# Units: hidden (h), groups (g), queries per group (p), feed-forward (f).


@dataclass(frozen=True)
class Units:
    """Which units each new one copies, and what becomes of those who read it."""

    index: Sequence[int]
    share: Sequence[float] | None = None
    new_rows: float = NAN
    new_columns: float = NAN
    gain: float = 1.0
    mean: bool = False
    """New rows are the mean of the source's."""


def resized(net: Net, unit: str, how: Units) -> Net:
    def change(name: str, axes: str, array: np.ndarray) -> np.ndarray:
        factor = how.gain if name in GAINS else 1.0
        if unit in axes:
            scale = [factor] * len(how.index)
            grown = pick(array, axes.index(unit), how.index, scale, fill_of(name, how.new_rows))
            if how.mean and name not in NORMS:
                new = [slice(None)] * array.ndim
                new[axes.index(unit)] = np.array(how.index) == FRESH
                grown[tuple(new)] = array.mean(axes.index(unit), keepdims=True)
            return grown
        if unit.upper() in axes:
            share = [factor * s for s in how.share or [1.0] * len(how.index)]
            fill = fill_of(name, how.new_columns)
            return pick(array, axes.index(unit.upper()), how.index, share, fill)
        return array

    return net.map(change)


def size_of(net: Net, unit: str) -> int:
    name = {"h": "embedding", "g": "k", "p": "q", "f": "up"}[unit]
    return net.arrays[name].shape[net.axes[name].index(unit)]


def net2net(source: int, target: int) -> Units:
    """A random map with numpy's generator of seed 0; copies divide what reads them."""
    more = np.random.default_rng(0).integers(0, source, target - source).tolist()
    index = [*range(source), *more]
    return Units(index, [1 / index.count(i) for i in index])


def tiled(source: int, target: int) -> Units:
    return Units([i % source for i in range(target)], [source / target] * target)


def padded(source: int, target: int) -> list[int]:
    return [*range(source), *[FRESH] * (target - source)]


def zero(net: Net, unit: str, target: int) -> Net:
    source = size_of(net, unit)
    index = padded(source, target)
    if unit != "h":
        return resized(net, unit, Units(index, new_columns=0.0))
    return resized(net, unit, Units(index, new_rows=0.0, gain=sqrt(source / target)))


def lemon(net: Net, unit: str, target: int) -> Net:
    """Whole copies, the first with 0.6 of the weights; then means, or zeros under RMSNorm."""
    source = size_of(net, unit)
    copies = target // source
    whole = copies * source
    index = [*(i % source for i in range(whole)), *[FRESH] * (target - whole)]
    shares = [0.6 if i < source else 0.4 / (copies - 1) for i in range(target)]
    shares = [1.0] * target if copies == 1 else shares
    if unit != "h":
        return resized(net, unit, Units(index, shares, new_columns=0.0))
    layer_norm = "norm1_bias" in net.arrays
    gain = sqrt(whole / target)
    return resized(net, unit, Units(index, shares, 0.0, gain=gain, mean=layer_norm))


def sparkling(net: Net, unit: str, target: int, copies: bool = True) -> Net:
    """RMS-consistent rescaling for a relative growth of c."""
    source = size_of(net, unit)
    c = target / source - 1
    if not copies:
        return resized(net, unit, Units(padded(source, target), [1 / sqrt(1 + c)] * target))
    factor = 1 / sqrt(1 + 3 * c) if c <= 1 else 1 / (1 + c)
    return resized(net, unit, Units([i % source for i in range(target)], [factor] * target))


def aki(net: Net, targets: dict[str, int]) -> Net:
    """Rows of copies from the layer above, which is grown by the same maps."""

    def grown(net: Net) -> Net:
        for unit, target in targets.items():
            net = resized(net, unit, net2net(size_of(net, unit), target))
        return net

    def from_above(name: str, axes: str, array: np.ndarray) -> np.ndarray:
        return np.concatenate([array[1:], array[-1:]]) if axes[0] == "l" else array

    own, above = grown(net), grown(net.map(from_above))

    def chosen(name: str, axes: str, array: np.ndarray) -> np.ndarray:
        if axes[0] != "l" or name in NORMS:
            return array
        array = array.copy()
        for unit, target in targets.items():
            if unit in axes:
                rows = (slice(None),) * axes.index(unit) + (slice(size_of(net, unit), target),)
                array[rows] = above.arrays[name][rows]
        return array

    return own.map(chosen)


def block_diagonal(net: Net) -> Net:
    """[[W, 0], [0, W]]; what has one such axis repeats, and halves if it reads it."""

    def change(name: str, axes: str, array: np.ndarray) -> np.ndarray:
        places = [i for i, letter in enumerate(axes) if letter.lower() in "hgf"]
        double = np.concatenate
        if len(places) == 1:
            half = 0.5 if axes[places[0]].isupper() else 1.0
            return double([array * half] * 2, places[0])
        rows, columns = places
        nothing = np.zeros_like(array)
        upper = double([array, nothing], columns)
        return double([upper, double([nothing, array], columns)], rows)

    return net.map(change)


def regroup(net: Net, groups: int) -> Net:
    """The same query heads; keys and values repeat, or those that become one are averaged."""
    before = size_of(net, "g")

    def change(name: str, axes: str, array: np.ndarray) -> np.ndarray:
        if name in ("q", "q_bias"):
            return array.reshape(len(array), groups, -1, *array.shape[3:])
        if name == "out":
            return array.reshape(*array.shape[:2], groups, -1, array.shape[-1])
        if name[0] not in "kv":
            return array
        if groups > before:
            return np.repeat(array, groups // before, 1)
        return array.reshape(len(array), groups, -1, *array.shape[2:]).mean(2)

    return net.map(change)


def head_size(net: Net, target: int, rotary: bool) -> Net:
    """Queries grow by fresh rows times the root of the ratio, keys and values by zeros."""
    source = net.arrays["k"].shape[2]
    index = padded(source, target)
    if rotary:  # dimension i turns with i + half, by a frequency that falls with i / half
        index = [FRESH] * target
        for i in range(source // 2):
            index[i * target // source] = i
            index[target // 2 + i * target // source] = source // 2 + i

    def change(name: str, axes: str, array: np.ndarray) -> np.ndarray:
        if name in ("q", "q_bias"):
            scale = [sqrt(target / source)] * target
            return pick(array, 3, index, scale, fill_of(name, NAN))
        if "d" in axes:
            return pick(array, axes.index("d"), index, None, 0.0)
        return pick(array, 4, index, None, NAN) if name == "out" else array

    return net.map(change)


# Depth.


def layers(net: Net, index: Sequence[int], fill: float = NAN) -> Net:
    def change(name: str, axes: str, array: np.ndarray) -> np.ndarray:
        new = 0.0 if fill == 0.0 else fill_of(name, fill)
        return pick(array, 0, index, None, new) if axes[0] == "l" else array

    return net.map(change)


def zeroed(net: Net, names: Sequence[str], where: Sequence[int]) -> Net:
    """Zeros in some layers of some arrays."""

    def change(name: str, axes: str, array: np.ndarray) -> np.ndarray:
        array = array.copy()
        if name in names:
            array[list(where)] = 0.0
        return array

    return net.map(change)


def mixed(net: Net, matrix: Sequence[Sequence[float]]) -> Net:
    def change(name: str, axes: str, array: np.ndarray) -> np.ndarray:
        if axes[0] != "l":
            return array
        return np.stack(
            [sum(m * layer for m, layer in zip(row, array, strict=True)) for row in matrix]
        )

    return net.map(change)


# Vocabulary and positions.


def rows(net: Net, axis: str, index: Sequence[int], fill: float = NAN) -> Net:
    def change(name: str, axes: str, array: np.ndarray) -> np.ndarray:
        return pick(array, 0, index, None, fill) if axes[0] == axis else array

    return net.map(change)


def mean_rows(net: Net, known: int, target: int) -> Net:
    def change(name: str, axes: str, array: np.ndarray) -> np.ndarray:
        if axes[0] != "v":
            return array
        mean = array[:known].mean(0)
        return np.concatenate([array[:known], np.tile(mean, (target - known, 1))])

    return net.map(change)


def stretched(net: Net, target: int) -> Net:
    """Linear interpolation from the first position to the last."""
    known = net.arrays["positions"]
    places = [i * (len(known) - 1) / (target - 1) for i in range(target)]

    def row(place: float) -> np.ndarray:
        low = min(int(place), len(known) - 2)
        return known[low] * (low + 1 - place) + known[low + 1] * (place - low)

    def change(name: str, axes: str, array: np.ndarray) -> np.ndarray:
        return np.stack([row(place) for place in places]) if name == "positions" else array

    return net.map(change)
