"""The only package with a training loop or an optimiser."""
