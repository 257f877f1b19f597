"""Restoring images with a trained policy or with base weights."""

from lucidnft.inference.checkpoints import load_policy
from lucidnft.inference.color_fix import adain_color_fix, wavelet_color_fix
from lucidnft.inference.restore import restore

__all__ = ["adain_color_fix", "load_policy", "restore", "wavelet_color_fix"]
