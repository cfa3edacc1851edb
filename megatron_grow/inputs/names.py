"""What a misspelt name may have meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """The known names that look like ``name``, for a message; if none does, all, where few."""
    known = sorted(known)
    lower = {each.lower(): each for each in known}
    close = [lower[match] for match in get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    close += [each for each in known if each.startswith(name) and each not in close][:3]
    if close:
        return f"did you mean {' or '.join(close)}?"
    if len(known) > 30:
        return "--help lists them all"
    return f"known are {', '.join(known)}"
