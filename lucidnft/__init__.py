"""Reinforcement fine-tuning of flow-matching models for real-world image super-resolution."""

__version__ = "0.1.0"
