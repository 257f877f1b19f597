"""Fixtures of the inference tests."""

from tests.small_backbone import backbone

__all__ = ["backbone"]
