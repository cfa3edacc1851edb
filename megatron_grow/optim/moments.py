"""Which moments an optimizer keeps."""

from __future__ import annotations

_ADAM = ("exp_avg", "exp_avg_sq")
_MOMENTUM = ("momentum_buffer",)


def moments(optimizer: str, *, matrix: bool, in_layer: bool) -> tuple[str, ...]:
    """The kinds of state that an ``optimizer`` of a run file keeps for a parameter.

    Args:
        optimizer: ``adam``, ``sgd``, ``muon`` or ``muon_nsgd``.
        matrix: whether the parameter is one, embeddings included.
        in_layer: whether it is one of a transformer layer's.
    """
    if optimizer == "muon":
        return _MOMENTUM if matrix and in_layer else _ADAM
    return _ADAM if optimizer == "adam" else _MOMENTUM
