"""Hypothesis for these tests: the same examples every time, on a machine of any speed."""

from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
