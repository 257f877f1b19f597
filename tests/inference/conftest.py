"""Fixtures of the inference tests."""

from tests.small_backbone import backbone
from tests.small_dit4sr import one_thread

__all__ = ["backbone", "one_thread"]
