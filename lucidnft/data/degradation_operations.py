"""The operations degradations are made of: each takes an image and the record of one draw, nothing else.

An operation is a JSON-serialisable dict with an "op" and its parameters.  `apply_operation` is a pure
function of (image, operation): noise carries the seed of its own generator, so a stored record repeats the
LR image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import fft

from lucidnft.data.blur_kernels import elliptic_kernel, sinc_kernel

Operation = dict[str, Any]

_LUMINANCE = np.array([0.2989, 0.587, 0.114], np.float32)  # the weights torchvision uses


def apply_operation(image: np.ndarray, operation: Mapping[str, Any]) -> np.ndarray:
    """(3, H, W) float32 -> the same, after one operation.  Raises ValueError for an unknown one."""
    try:
        function = _OPERATIONS[operation["op"]]
    except KeyError:
        raise ValueError(
            f"unknown degradation operation {operation.get('op')!r}; known are {', '.join(_OPERATIONS)}"
        ) from None
    return function(image, operation)


def filter_2d(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """(3, H, W) convolved with an odd-sized kernel, borders mirrored without repeating the edge pixel."""
    margin = kernel.shape[0] // 2
    padded = np.pad(image, ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
    height, width = padded.shape[1:]
    # Circular convolution wraps only into the margin, which is cut away: no further padding is needed.
    size = (fft.next_fast_len(height, real=True), fft.next_fast_len(width, real=True))
    spectrum = fft.rfft2(padded, size) * fft.rfft2(kernel.astype(np.float32), size)
    full = fft.irfft2(spectrum, size)
    return full[:, 2 * margin : height, 2 * margin : width]


def _blur(image: np.ndarray, op: Mapping[str, Any]) -> np.ndarray:
    kernel = elliptic_kernel(
        op["size"], op["sigma_x"], op["sigma_y"], op["rotation"], shape=op["shape"], beta=op["beta"]
    )
    return filter_2d(image, kernel)


def _sinc(image: np.ndarray, op: Mapping[str, Any]) -> np.ndarray:
    return filter_2d(image, sinc_kernel(op["size"], op["cutoff"]))


def _resize(image: np.ndarray, op: Mapping[str, Any]) -> np.ndarray:
    """Not clamped, unlike `images.resize`: the pipelines clamp after the noise that follows."""
    images = torch.from_numpy(np.ascontiguousarray(image))[None]
    options = {} if op["mode"] == "area" else {"align_corners": False, "antialias": op["antialias"]}
    return F.interpolate(images, size=(op["height"], op["width"]), mode=op["mode"], **options)[0].numpy()


def _blur_and_stride(image: np.ndarray, op: Mapping[str, Any]) -> np.ndarray:
    """BSRGAN's other down-sampling: the kernel is shifted so that the kept pixels stay centred."""
    factor = op["factor"]
    kernel = elliptic_kernel(op["size"], op["sigma"], op["sigma"], 0.0, shift=-(factor - 1) / 2)
    return np.ascontiguousarray(filter_2d(image, kernel)[:, ::factor, ::factor])


def _gaussian_noise(image: np.ndarray, op: Mapping[str, Any]) -> np.ndarray:
    """Noise of op["sigma"] / 255: one field for all channels (grey), one each, or mixed by a covariance."""
    rng = np.random.default_rng(op["noise_seed"])
    channels = 1 if op["grey"] else 3
    noise = rng.standard_normal((channels, *image.shape[1:]), dtype=np.float32)
    if "mixing" in op:
        noise = np.tensordot(np.asarray(op["mixing"], np.float32), noise, axes=1)
    return _clip(image + noise * np.float32(op["sigma"] / 255))


def _poisson_noise(image: np.ndarray, op: Mapping[str, Any]) -> np.ndarray:
    """Shot noise times op["scale"]; photon count = number of grey levels in use, up to a power of two.

    With op["aligned"], every pixel has a random number of its own and the count is 256, so that another value of one
    changes no other; numpy's own sampler takes as many numbers as the values ask for.
    """
    rng = np.random.default_rng(op["noise_seed"])
    levels = np.round(_clip(image) * 255)
    if op["grey"]:
        levels = np.round(np.tensordot(_LUMINANCE, levels, axes=1)[None])
    used = np.bincount(levels.astype(np.int64).ravel(), minlength=256)
    photons = 256 if op.get("aligned", False) else 2 ** int(np.ceil(np.log2(np.count_nonzero(used))))
    clean = levels / np.float32(255)
    expected = clean * np.float32(photons)
    if op.get("aligned", False):
        from scipy.stats import poisson  # slow to load, and reading a run file comes by here

        counts = np.maximum(poisson.ppf(rng.random(expected.shape), expected), 0)
    else:
        counts = rng.poisson(expected)
    noise = counts.astype(np.float32) / np.float32(photons) - clean
    return _clip(image + noise * np.float32(op["scale"]))


def _jpeg(image: np.ndarray, op: Mapping[str, Any]) -> np.ndarray:
    buffer = BytesIO()
    Image.fromarray(_to_uint8(image)).save(buffer, "JPEG", quality=op["quality"], subsampling=2)
    decoded = np.asarray(Image.open(buffer))
    return np.ascontiguousarray(decoded.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)


def _clip_values(image: np.ndarray, op: Mapping[str, Any]) -> np.ndarray:
    return _clip(image)


def _round_to_8_bits(image: np.ndarray, op: Mapping[str, Any]) -> np.ndarray:
    return np.round(_clip(image) * 255).astype(np.float32) / np.float32(255)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.round(_clip(image) * 255).astype(np.uint8).transpose(1, 2, 0)


def _clip(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 1, dtype=np.float32)


_OPERATIONS: dict[str, Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]] = {
    "blur": _blur,
    "sinc": _sinc,
    "resize": _resize,
    "blur_and_stride": _blur_and_stride,
    "gaussian_noise": _gaussian_noise,
    "poisson_noise": _poisson_noise,
    "jpeg": _jpeg,
    "clip": _clip_values,
    "round": _round_to_8_bits,
}
