"""The place of the tests of training to run the command in."""

from tests.train.conftest import workplace  # noqa: F401
