"""The file of growths that ``convert_checkpoint.py grow`` applies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_grow.checkpoint.formats import growth_note
from megatron_grow.checkpoint.reader import Reader
from megatron_grow.config.grow import GrowSection, check_growth
from megatron_grow.config.stages import changed_model, override
from megatron_grow.growth.offline import GrownReader
from megatron_grow.growth.plan import growth
from megatron_grow.inputs.errors import UserError
from megatron_grow.inputs.strict_yaml import read_yaml
from megatron_grow.optim.optimizers import recorded_optimizer
from megatron_grow.parametrization.table import recorded_parametrization


def read_growths(path: Path) -> list[dict[str, Any]]:
    """The growths in a file: one with ``model`` and ``grow``, or a list of them, in their order.

    Raises:
        UserError: not there, not YAML, or of another form.
    """
    content = read_yaml(path, "--grow")
    growths = content if isinstance(content, list) else [content]
    for entry in growths or [None]:
        if not isinstance(entry, dict) or not isinstance(entry.get("model"), dict):
            raise UserError(
                f"--grow {path} must have `model:`, what differs from the source, and `grow:`, an "
                "operator for each axis that grows; or be a list of such"
            )
        if unknown := set(entry) - {"model", "grow"}:
            raise UserError(f"--grow {path}: {sorted(unknown)[0]} is unknown; model and grow are")
    return growths


def grow(source: Reader, path: Path, seed: int | None, tell: Callable[[str], None]) -> Reader:
    """``source`` after the growths of a file.

    Args:
        source: the checkpoint.
        path: the file.
        seed: decides fresh values; None: that of the run which wrote the checkpoint.
        tell: is given a line for each growth.

    Raises:
        UserError: an impossible growth.
    """
    growths = read_growths(path)
    config = source.record.config
    if seed is None:
        seed = int(config.get("run", {}).get("seed", 1234))
    # Weights alone are grown without their optimizer, which may not be here.
    trains = any(len(source.kinds(key)) > 1 for key in source.tensors)
    optimizer = recorded_optimizer(config) if trains else None
    parametrization = recorded_parametrization(config, source.record.model_config)
    depth = int(config.get("model", {}).get("num_layers", 0))
    shapes = []
    model = source.record.model_config
    for number, entry in enumerate(growths):
        where = path.name if len(growths) == 1 else f"{path.name}[{number}]"
        target = changed_model(model, entry["model"], f"{where}.model")
        section = override(GrowSection(), entry.get("grow") or {}, f"{where}.grow")
        if section.mask_iters:
            raise UserError(
                f"{where}.grow.mask_iters={section.mask_iters} fades new units in while a run "
                "trains; leave it out, or grow in the run"
            )
        check_growth(model, target, section, where)
        shapes.append((model, target, section, where))
        model = target
    # Fresh layers begin as in a run whose last stage is the deepest model that is known of.
    target_depth = max(depth, model.num_layers)
    for before, after, section, where in shapes:
        plan = growth(
            before,
            after,
            section,
            target_depth=target_depth,
            seed=seed,
            optimizer=optimizer,
            tensors_of=parametrization.tensors,
            where=f"{where}.grow",
        )
        source = GrownReader(source, plan, after, section)
        what = f"changes the function ({'; '.join(plan.caveats)})" if plan.caveats else ""
        tell(f"{plan.summary}: {what or 'keeps the function'}; {growth_note(before, after)}")
    return source
