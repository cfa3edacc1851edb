"""Checkpoints to checkpoints: what ``tools/convert_checkpoint.py`` does."""
