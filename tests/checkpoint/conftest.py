"""Fixtures that tests of several files here share."""

from tests.small_dit4sr import one_thread

__all__ = ["one_thread"]
