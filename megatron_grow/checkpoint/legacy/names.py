"""Names in a legacy checkpoint; Megatron-LM's own."""

LEGACY = "model_optim_rng.pt"
"""A file, one in each of the directories ``mp_rank_*``."""
