"""What an image needs in memory however small its tiles are, and a refusal before it is begun.

Linux promises more memory than there is, so a process on the CPU that takes too much is killed and raises nothing.
"""

from __future__ import annotations

import math
import sys

import torch

from lucidnft.inference.tile_memory import free_memory

SOLVER_LATENTS = {"euler": 4, "heun": 6, "dpm2": 7}
"""Latents of the whole image that a solver has at its peak: state, velocity, what it remembers, a sum and its term."""

EXPECTATION_LATENTS = 6
COLOR_FIX_IMAGES = {"nofix": 1.0, "adain": 3.0, "wavelet": 4.5}
"""Outputs in float32 at the peak of a colour fix: both images, the result, and working planes."""

GIB = 2**30


class ImageTooLargeError(MemoryError):
    """No plan can restore an image of this size in the memory that is free."""


def whole_image_bytes(
    latent: tuple[int, int, int],
    native_size: tuple[int, int],
    size: tuple[int, int],
    *,
    num_images: int,
    solver: str,
    fidelity: float,
    align_method: str,
    keeps_style: bool,
    draws_conditions: bool = False,
) -> int:
    """Peak bytes of the tensors that span one image while it is restored in tiles, without its tiles.

    Args:
        latent: (C, h, w) of the whole image.
        native_size: (H, W) that the backbone makes, padded.
        size: (H, W) of the output.
        num_images: whose outputs are returned together.
        solver, fidelity, align_method: as in `restore`.
        keeps_style: whether the colours are taken from an image that is made before the solve.
        draws_conditions: whether the conditions of its tiles share a draw, which is as large as the latent.
    """
    of_latent, made, out = (4 * math.prod(shape) for shape in (latent, (3, *native_size), (3, *size)))
    states = SOLVER_LATENTS[solver]
    if fidelity > 0:  # the noise is kept for the expectation, at which the drawn latents are kept
        states = EXPECTATION_LATENTS if fidelity == 1 else max(states, EXPECTATION_LATENTS) + 1
    states += draws_conditions
    stages = (states * of_latent, of_latent + made, made + out if native_size != size else made)
    kept = out if keeps_style else 0
    results = out * num_images if num_images > 1 else 0
    return int(results + max(kept + max(stages), COLOR_FIX_IMAGES[align_method] * out))


def known_free_memory(device: torch.device) -> int | None:
    """As `free_memory`; None for a machine that does not say."""
    return None if device.type != "cuda" and sys.platform != "linux" else free_memory(device)


def check_whole_image(size: tuple[int, int], need: int, storage: torch.device) -> None:
    """Refuse an image that needs more than is free on the device of its whole tensors.

    Raises:
        ImageTooLargeError: with the size, what it needs, what is free and what to do.
    """
    free = known_free_memory(storage)
    if free is None or need <= free:
        return
    ways = "ask for a smaller output (--upscale, --width, --height), or make memory free"
    if storage.type != "cpu":
        ways = f"keep whole images in the machine's memory (--storage cpu), or {ways}"
    raise ImageTooLargeError(
        f"an output of {size[1]}x{size[0]} px needs {need / GIB:.1f} GiB on {storage} whatever the tiles, and "
        f"{free / GIB:.1f} GiB are free; {ways}"
    )
