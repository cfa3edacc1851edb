"""One growth for each operator and axis: what a run file says, and the paper's formula for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations, permutations
from typing import Any

from tests.growth.algebra import GPT2, LLAMA
from tests.operators import formulas as f
from tests.operators.formulas import FRESH, Net, Units

Make = Callable[[Net], Net]
# Layer norms, biases, learned positions, one query per group and a tied head; or none of these.
MODELS = {
    "GPT-2": GPT2,
    "LLaMA": replace(LLAMA, num_attention_heads=8, num_query_groups=4),
    "GPT-2, shared": replace(GPT2, layer_sharing="1x2"),
}


@dataclass(frozen=True)
class Growth:
    spec: str | dict[str, Any]
    model: dict[str, Any]
    """As :func:`tests.growth.algebra.grown_model` takes it."""
    make: Make
    on: tuple[str, ...] = tuple(MODELS)
    """The models that it applies to."""
    also: set[str] = field(default_factory=set)
    """Other keys whose axes it grows."""


def _depth(spec: str | dict[str, Any], index: list[int], make: Make | None = None) -> Growth:
    def copied(net: Net) -> Net:
        return f.layers(net, index)

    return Growth(spec, {"num_layers": len(index)}, make or copied, on=("GPT-2", "LLaMA"))


INSERTED = [0, 0, 1, 1, 1]
INTERPOLATION = [[1.0, 0.0], [0.75, 0.25], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0]]
MATRIX = [[1.0, 0.0], [1.5, -0.5], [0.0, 1.0]]
NORMS_AND_BIASES = [n for n in f.LAYER_AXES if n in f.NORMS or n.endswith("bias")]


LAYERS = [1, 0, FRESH, 0, 1, FRESH]


def _explicit(net: Net) -> Net:
    """Where their branches end, layer 1 is halved and layers 3 and 5 are zero."""
    net = f.layers(net, LAYERS)
    for name in set(f.ENDS) & set(net.arrays):
        net.arrays[name][1] *= 0.5
    return f.zeroed(net, f.ENDS, [3, 5])


DEPTH = {
    "random": _depth("random", [0, 1, FRESH, FRESH, FRESH]),
    "zero": _depth("zero", [0] * 5, lambda n: f.layers(n, [0, 1, FRESH, FRESH, FRESH], 0.0)),
    "copying_stack": _depth("copying_stack", [0, 1, 0, 1, 0]),
    "copying_stack, top": _depth(
        {"operator": "copying_stack", "remainder": "top"}, [0, 1, 0, 1, 1]
    ),
    "copying_inter": _depth("copying_inter", [0, 0, 0, 1, 1]),
    "copying_last": _depth("copying_last", [0, 1, 1, 1, 1]),
    "copying_zero": _depth(
        "copying_zero", INSERTED, lambda n: f.zeroed(f.layers(n, INSERTED), f.ENDS, [1, 3, 4])
    ),
    "identity": _depth(
        "identity",
        INSERTED,
        lambda n: f.zeroed(f.layers(n, INSERTED), NORMS_AND_BIASES, [1, 3, 4]),
    ),
    "llama_pro": _depth(
        "llama_pro", [0] * 4, lambda n: f.zeroed(f.layers(n, [0, 0, 1, 1]), f.ENDS, [1, 3])
    ),
    "explicit": _depth({"operator": "explicit", "layers": [1, 0, -1, 0, 1]}, [1, 0, -1, 0, 1]),
    "explicit, zero and scale": _depth(
        {
            "operator": "explicit",
            "layers": LAYERS,
            "zero": [3, 5],
            "scale": [1.0, 0.5, 1.0, 1.0, 1.0, 1.0],
        },
        LAYERS,
        _explicit,
    ),
    "mix": _depth("mix", [0] * 5, lambda n: f.mixed(n, INTERPOLATION)),
    "mix, matrix": _depth(
        {"operator": "mix", "matrix": MATRIX}, [0] * 3, lambda n: f.mixed(n, MATRIX)
    ),
    "unshare": Growth(
        "unshare", {"layer_sharing": None}, lambda n: f.layers(n, [0, 0]), on=("GPT-2, shared",)
    ),
}


def _units(make: Callable[[Net, str, int], Net], targets: dict[str, Any]) -> Make:
    """The same formula along each unit; a factor if a float."""

    def changed(net: Net) -> Net:
        for unit, target in targets.items():
            size = int(target * f.size_of(net, unit)) if isinstance(target, float) else target
            net = make(net, unit, size)
        return net

    return changed


def _by(how: Callable[[int, int], Units]) -> Callable[[Net, str, int], Net]:
    return lambda net, unit, target: f.resized(net, unit, how(f.size_of(net, unit), target))


def _random(source: int, target: int) -> Units:
    return Units(f.padded(source, target))


def _cyclic(source: int, target: int) -> Units:
    index = [i % source for i in range(target)]
    return Units(index, [1 / index.count(i) for i in index])


def _aki(targets: dict[str, Any]) -> Make:
    def make(net: Net) -> Net:
        whole = {
            unit: int(target * f.size_of(net, unit)) if isinstance(target, float) else target
            for unit, target in targets.items()
        }
        return f.aki(net, whole)

    return make


def _along(
    model: Callable[..., dict[str, Any]], some: Any, whole: Any, more: Any
) -> dict[str, Growth]:
    """What works alike along all units, to ``some`` more, ``whole`` times as many, or ``more``."""

    def grown(spec: str | dict[str, Any], to: Any, make: Any) -> Growth:
        return Growth(spec, model(**to), _units(make, to))

    return {
        "fpi": grown("fpi", some, _by(f.net2net)),
        "fpi, cyclic": grown({"operator": "fpi", "map": "cyclic"}, some, _by(_cyclic)),
        "hypercloning": grown("hypercloning", whole, _by(f.tiled)),
        "lemon": grown("lemon", more, f.lemon),
        "zero": grown("zero", some, f.zero),
        "random": grown("random", some, _by(_random)),
        "sparkling": grown("sparkling", some, f.sparkling),
        "sparkling, none": grown(
            {"operator": "sparkling", "copy": "none"},
            some,
            lambda net, unit, target: f.sparkling(net, unit, target, copies=False),
        ),
        "aki": Growth("aki", model(**some), _aki(some)),
    }


WIDTH = {
    **_along(lambda h: {"hidden_size": h}, {"h": 12}, {"h": 24}, {"h": 20}),
    "block_diagonal": Growth(
        "block_diagonal",
        {"hidden_size": 16, "groups": 2.0, "ffn_hidden_size": 24},
        f.block_diagonal,
        also={"heads", "ffn"},
    ),
}
FFN = _along(lambda f: {"ffn_hidden_size": f}, {"f": 18}, {"f": 36}, {"f": 30})
HEADS = {
    **_along(
        lambda g, p: {"groups": g, "per_group": p},
        {"g": 1.5, "p": 3},
        {"g": 2.0, "p": 4},
        {"g": 2.5, "p": 5},
    ),
    "head_size": Growth(
        "head_size", {"kv_channels": 8}, lambda n: f.head_size(n, 8, rotary=False), on=("GPT-2",)
    ),
    "head_size, rotary": Growth(
        "head_size", {"kv_channels": 8}, lambda n: f.head_size(n, 8, rotary=True), on=("LLaMA",)
    ),
    "regroup, fewer": Growth(
        "regroup", {"groups": 2, "per_group": 2}, lambda n: f.regroup(n, 2), on=("GPT-2",)
    ),
    "regroup, more": Growth(
        "regroup", {"groups": 8, "per_group": 1}, lambda n: f.regroup(n, 8), on=("LLaMA",)
    ),
}
TOKENS = [*range(1, 40), FRESH, FRESH, 7, *range(6)]
VOCAB = {
    "random": Growth("random", {"vocab_size": 48}, lambda n: f.rows(n, "v", f.padded(40, 48))),
    "mean": Growth("mean", {"vocab_size": 48}, lambda n: f.mean_rows(n, 40, 48)),
    "mapping": Growth(
        {"operator": "mapping", "tokens": TOKENS},
        {"vocab_size": 48},
        lambda n: f.rows(n, "v", TOKENS),
    ),
}
POSITIONS = {
    "copy": Growth(
        "copy",
        {"max_position_embeddings": 12},
        lambda n: f.rows(n, "t", [i % 8 for i in range(12)]),
        on=("GPT-2",),
    ),
    "random": Growth(
        "random",
        {"max_position_embeddings": 12},
        lambda n: f.rows(n, "t", f.padded(8, 12)),
        on=("GPT-2",),
    ),
    "interpolate": Growth(
        "interpolate",
        {"max_position_embeddings": 12},
        lambda n: f.stretched(n, 12),
        on=("GPT-2",),
    ),
}
# Depth comes last: its layers are drawn from those that the other operators made.
GROWTHS: dict[str, dict[str, Growth]] = {
    "vocab": VOCAB,
    "positions": POSITIONS,
    "width": WIDTH,
    "heads": HEADS,
    "ffn": FFN,
    "depth": DEPTH,
}


Choice = tuple[str, str]
"""A key of :data:`GROWTHS`, and a name in it."""


def _together(a: Choice, b: Choice) -> bool:
    (first, one), (second, other) = a, b
    apart = second not in GROWTHS[first][one].also and first not in GROWTHS[second][other].also
    return first != second and apart


def _choices(model: str) -> list[Choice]:
    return [(k, n) for k, named in GROWTHS.items() for n, g in named.items() if model in g.on]


def pairs(model: str) -> list[tuple[Choice, Choice]]:
    """Every two growths of different axes."""
    return [(a, b) for a, b in combinations(_choices(model), 2) if _together(a, b)]


def covering(model: str) -> list[list[Choice]]:
    """Growths of many axes at once, so that each pair is in one of them."""
    missing = set(pairs(model))
    rows = []
    for pair in pairs(model):
        if pair not in missing:
            continue
        row = list(pair)
        for key in GROWTHS:
            fitting = [c for c in _choices(model) if c[0] == key and _fits(c, row)]
            if fitting:
                row.append(max(fitting, key=partial(_new_pairs, row=row, missing=missing)))
        missing -= set(permutations(row, 2))
        rows.append(row)
    return rows


def _fits(choice: Choice, row: list[Choice]) -> bool:
    return all(_together(choice, chosen) for chosen in row)


def _new_pairs(choice: Choice, row: list[Choice], missing: set[tuple[Choice, Choice]]) -> int:
    return sum((choice, chosen) in missing or (chosen, choice) in missing for chosen in row)
