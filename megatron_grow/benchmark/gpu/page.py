"""The page: every figure of the JSON that a reader wants, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Values = dict[str, Any]
_GIB = 2**30


def page(values: Values) -> str:
    """The whole page; parts that have not run are not in it."""
    parts = values["parts"]
    lines = ["# On a GPU", "", _machine(values), ""]
    for name, (title, method, table) in _TABLES.items():
        if name in parts:
            good = {task: row for task, row in parts[name].items() if _measured(row)}
            lines += [f"## {title}", "", method, "", *(table(good, values) if good else []), ""]
            lines += _unmeasured(parts[name])
    return "\n".join(lines).rstrip() + "\n"


def _measured(row: Values) -> bool:
    return "failed" not in row and "left_out" not in row


def _unmeasured(part: Values) -> list[str]:
    lines = []
    for task, row in part.items():
        if "left_out" in row:
            lines += [f"Left out: {task} ({row['left_out']}).", ""]
        if "failed" in row:
            lines += [f"**{task} failed**:", "", "```", str(row["failed"]).strip(), "```", ""]
    return lines


def _machine(values: Values) -> str:
    host, device = values["host"], values.get("device", {})
    facts = [
        host["date"],
        device.get("name") or "no GPU",
        f"{device['memory'] / _GIB:.0f} GiB" if "memory" in device else None,
        f"torch {host['torch']}",
        f"CUDA {device['cuda']}" if "cuda" in device else None,
        f"NCCL {device['nccl']}" if "nccl" in device else None,
        host["processor"],
        f"{host['cores']} cores",
    ]
    return ", ".join(fact for fact in facts if fact) + "."


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def _number(value: float | None, form: str = ".3g") -> str:
    return "" if value is None else format(value, form)


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _gib(value: float) -> str:
    return f"{value / _GIB:.1f}"


def _correctness(rows: Values, values: Values) -> list[str]:
    cells = []
    for row in rows.values():
        for name, case in row["cases"].items():
            found = "yes" if case["equal"] else "**no**"
            if "same_bits" in case:
                found += ", bit by bit" if case["same_bits"] else ""
            kept = _number(case.get("kept"), ".1e")
            apart = [_number(case.get(which), ".1e") for which in ("largest", "largest_of_norms")]
            cells.append([name, found, *apart, kept])
    columns = ["run of 20 steps", "equal", "losses differ by", "gradient norms", "growth changes"]
    lines = _table(columns, cells)
    for row in rows.values():
        for name, case in row["cases"].items():
            for where, said in case.get("failed", {}).items():
                lines += ["", f"**{name} failed on the {where}**:", "", "```", said.strip(), "```"]
    return lines


def _speed(rows: Values, values: Values) -> list[str]:
    found = list(rows.values())
    whole = values.get("extrapolated")
    cells = [_speed_cells(row) for row in found]
    if whole:
        cells.append(_speed_cells(whole | {"shape": f"{whole['shape']}, extrapolated"}))
    return _table(_SPEED, cells)


_SPEED = [
    "shape", "layers", "parameters", "micro-batch", "tokens/s", "MFU", "causal", "peak GiB", "held",
]  # fmt: skip


def _speed_cells(row: Values) -> list[str]:
    batch = ""
    if "micro_batch_size" in row:
        batch = f"{row['micro_batch_size']} x {row['seq_length']}"
        batch += ", recomputed" if row["recompute"] else ""
    return [
        row["shape"],
        _layers(row),
        f"{row['parameters'] / 1e6:.0f}M",
        batch,
        f"{row['tokens_per_second']:,.0f}",
        _share(row.get("mfu")),
        _share(row.get("mfu_causal")),
        _gib(row["peak_allocated"]) if "peak_allocated" in row else "",
        _gib(row["peak_reserved"]) if "peak_reserved" in row else "",
    ]


def _layers(row: Values) -> str:
    asked = row.get("asked_layers", row["layers"])
    return str(row["layers"]) if asked == row["layers"] else f"{row['layers']} of {asked}"


def _beside(rows: Values, values: Values) -> list[str]:
    cells = []
    for shape, row in rows.items():
        for name in ("megatron_grow", "torch.compile"):
            cells.append([name, *_speed_cells(row[name])])
        cells.append([f"ratio {row['ratio']:.2f}", shape, *[""] * (len(_SPEED) - 1)])
    return _table(["", *_SPEED], cells)


def _ablation(rows: Values, values: Values) -> list[str]:
    return _table(["", *_SPEED], [[name, *_speed_cells(row)] for name, row in rows.items()])


def _growth(rows: Values, values: Values) -> list[str]:
    cells = [
        [
            row["shape"],
            f"{row['before']} -> {row['after']}",
            f"{row['pause']:.2f} s",
            _gib(row["growth_memory"]["peak_allocated"]),
            _gib(row["step_memory"]["peak_allocated"]),
            f"{row['first_step']:.2f} s",
            f"{row['later_step']:.3f} s",
            f"{row['save']:.2f} s, {_gib(row['save_bytes'])} GiB" if "save" in row else "",
        ]
        for row in rows.values()
    ]
    columns = ["shape", "layers", "pause", "peak GiB of growth", "of a step", "first step"]
    return _table([*columns, "later steps", "a save"], cells)


def _kernel(name: str, count: int, seconds: float, share: float) -> list[str]:
    return [f"`{name[:90]}`", str(count), f"{1e3 * seconds:.2f}", _share(share)]


def _profile(rows: Values, values: Values) -> list[str]:
    lines = []
    for name, row in rows.items():
        waits = sum(row["waits"].values())
        lines += [
            f"{name}: {row['kernels']} kernels in a step; none runs in {_share(row['idle'])} of "
            f"it; the host waits {waits} times.",
            "",
        ]
        kernels = [
            [
                f"`{k['name'][:90]}`",
                str(k["count"]),
                f"{1e3 * k['seconds']:.2f}",
                _share(k["share"]),
            ]
            for k in row["longest"]
        ]
        lines += [*_table(["longest kernels", "times", "ms", "share"], kernels), ""]
        waited = [[f"`{line}`", str(count)] for line, count in row["waits"].items()]
        lines += [*_table(["the host waits at", "times"], waited), ""] if waited else []
    return lines


_TABLES: dict[str, tuple[str, str, Callable[[Values, Values], list[str]]]] = {
    "correctness": (
        "The same as on a CPU",
        "Runs of 20 steps with a growth after the tenth, by `pretrain_progressive.py`, on this GPU "
        "and on this machine's CPU; *resumed* goes back to step 15. Differences are the largest of "
        "a step, relative. Runs in bf16, with fast kernels and with whole layers compiled have the "
        "`kernels` that are on where nobody says otherwise, the others none. A growth changes the "
        "loss by nothing where it keeps the function.",
        _correctness,
    ),
    "speed": (
        "Speed and memory, bf16",
        "A step is one micro-batch, with Adam. MFU is by the published convention, with the whole "
        "square of attention; *causal* counts half of it. Recomputation does not count. Of a shape "
        "that does not fit there are as many layers as do; *extrapolated* adds to no layers the "
        "slope of a layer.",
        _speed,
    ),
    "beside": (
        "Beside plain PyTorch under torch.compile",
        "A GPT of the same shape in plain PyTorch, compiled whole, under autocast with fused AdamW "
        "and clipping. Each is alone on the GPU; ours before and after.",
        _beside,
    ),
    "profile": ("Where a step's time goes", "One step under torch's profiler.", _profile),
    "growth": (
        "A growth and a save",
        "The pause is from the last step of the small stage to a grown one that is ready; the "
        "first step after it compiles its kernels.",
        _growth,
    ),
    "ablation": (
        "What the kernels are worth",
        "The switches of the section `kernels`: all that help, none, and all but one.",
        _ablation,
    ),
}
