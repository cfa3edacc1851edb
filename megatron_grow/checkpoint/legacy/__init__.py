"""Megatron-LM's legacy ``torch`` layout: one file for each model-parallel rank, weights alone."""
