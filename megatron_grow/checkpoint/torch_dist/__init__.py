"""Megatron-core's sharded format."""
