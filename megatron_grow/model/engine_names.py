"""What megatron-core asks for by name on any device, and has beside Transformer Engine alone."""

from __future__ import annotations


def define() -> None:
    """Tell routers of experts that there is no kernel of Transformer Engine's; idempotent."""
    from megatron.core.transformer.moe import moe_utils

    if not hasattr(moe_utils, "te_general_gemm"):
        moe_utils.te_general_gemm = None
