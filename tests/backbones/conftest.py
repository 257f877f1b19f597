"""Fixtures of the backbone tests."""

from tests.small_backbone import backbone

__all__ = ["backbone"]
