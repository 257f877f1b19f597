"""Restoring images with a trained policy or with base weights."""

from lucidnft.inference.checkpoints import load_policy
from lucidnft.inference.color_fix import adain_color_fix, wavelet_color_fix
from lucidnft.inference.mixed_sizes import restore_mixed
from lucidnft.inference.restore import restore

__all__ = ["adain_color_fix", "load_policy", "restore", "restore_mixed", "wavelet_color_fix"]
