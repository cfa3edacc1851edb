"""Hugging Face checkpoints: ``config.json`` and safetensors, both ways."""
