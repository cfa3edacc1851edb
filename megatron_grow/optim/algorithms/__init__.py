"""Muon and NSGD, as torch optimizers, and what they are made of."""
