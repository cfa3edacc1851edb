"""Measurements behind docs/benchmarks.md; the command line is tools/benchmark.py."""
