"""Samples in which some tokens are masked, and are to be predicted."""
