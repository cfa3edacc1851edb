"""Making corpora: documents in, Megatron's indexed format out."""
