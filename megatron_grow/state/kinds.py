"""The kinds of state that each logical tensor has."""

from __future__ import annotations

MAIN_PARAM = "main_param"
"""The truth about weights: fp32 while training, whatever precision the model runs in."""

Kind = str
"""``main_param``, or the name of an optimizer moment."""


def describe(key: str, kind: str) -> str:
    """What a message calls one kind of a tensor's state."""
    return key if kind == MAIN_PARAM else f"{kind} of {key}"
