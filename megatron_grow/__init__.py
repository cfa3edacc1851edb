"""Pretraining that starts small and grows: progressive training on Megatron-Core."""

__version__ = "0.1.0"
