"""Published recipes, spelled out as operators."""

from __future__ import annotations

from typing import Any

from megatron_grow.inputs.errors import UserError

RECIPES: dict[str, dict[str, Any]] = {
    # Bu 2025, arXiv 2511.04981. From none, fresh layers are all there is; from one, copies, and
    # layers that are silent at first, end within 1 % of them (docs/study/gpt.md).
    "zero_one_layer": {"depth": "random"},
    # Du et al. 2024, arXiv 2405.15319: stack a whole number of times, with a fresh optimizer
    "g_stack": {
        "depth": {"operator": "copying_stack", "whole_factor": True},
        "optimizer_state": "reset",
    },
    # Wu et al. 2024, arXiv 2401.02415
    "llama_pro": {"depth": "llama_pro"},
    # Chen et al. 2021, arXiv 2110.07143
    "bert2bert": {
        "depth": {"operator": "copying_stack", "remainder": "top"},
        "width": "aki",
        "heads": "aki",
        "ffn": "aki",
    },
    # Gu et al. 2020, arXiv 2010.12562: stacked layers, tiled feed-forward units, a fresh optimizer
    "compound_grow": {
        "depth": "copying_stack",
        "ffn": "hypercloning",
        "optimizer_state": "reset",
    },
    # Samragh et al. 2024, arXiv 2409.12903
    "hypercloning": {"width": "hypercloning", "heads": "hypercloning", "ffn": "hypercloning"},
    # Wang et al. 2023, arXiv 2310.07999
    "lemon": {"depth": "copying_zero", "width": "lemon", "heads": "lemon", "ffn": "lemon"},
    # Yao et al. 2023, arXiv 2305.02869
    "msg": {
        "depth": "random",
        "width": "random",
        "heads": "random",
        "ffn": "random",
        "mask_iters": 1000,
    },
    # Shen et al. 2022, arXiv 2203.06211
    "staged": {"depth": "identity", "width": "block_diagonal"},
}
"""What ``grow: {recipe: NAME}`` stands for; keys whose sizes do not grow have no effect."""


def expand(name: str | None) -> dict[str, Any]:
    """The operators of a recipe.

    Raises:
        UserError: an unknown name.
    """
    if name is None:
        return {}
    if name not in RECIPES:
        raise UserError(f"grow.recipe={name!r} is not a recipe; known are {', '.join(RECIPES)}")
    return RECIPES[name]
