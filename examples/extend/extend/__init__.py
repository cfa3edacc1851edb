"""Pieces of one's own, which a run file names by import path."""
