"""The place to run the command in, as for tests of training."""

from tests.train.conftest import workplace  # noqa: F401
