"""Scorers that run in a Python environment of their own, see `lucidnft.rewards.external`.

Nothing here imports lucidnft, so that the environment needs only the scorer's own packages.
"""
