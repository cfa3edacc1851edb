"""One command for one GPU: first whether it computes the same as a CPU, then how fast."""
