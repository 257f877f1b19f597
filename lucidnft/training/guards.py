"""Measurements that no run trains on, reported wherever HR is known: a reward that is hacked shows here."""

from __future__ import annotations

import importlib.util

import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from lucidnft.images import tensor_to_uint8
from lucidnft.rewards.base import Reward
from lucidnft.rewards.iqa import IQAReward
from lucidnft.training.held_out import RestoredBatch

NUM_BANDS = 16


def luminance(images: Tensor) -> Tensor:
    """Y of YCbCr in [16/255, 235/255] (ITU-R BT.601, as MATLAB and the field compute it): (N, 3, H, W) -> (N, H, W)."""
    weights = torch.tensor([65.481, 128.553, 24.966], device=images.device) / 255
    return torch.einsum("nchw,c->nhw", images, weights) + 16 / 255


def psnr_y(sr: Tensor, hr: Tensor) -> Tensor:
    """PSNR in dB on Y, no border crop: (N, 3, H, W) twice -> (N,)."""
    error = (luminance(sr) - luminance(hr)).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error.clamp_min(1e-10))


def ssim_y(sr: Tensor, hr: Tensor) -> list[float]:
    """SSIM on Y as the field computes it: Y in whole levels, Gaussian window of 11 pixels, sigma 1.5.

    (N, 3, H, W) twice -> N numbers.  An image has to be at least 11 pixels wide and high.
    """
    y_sr, y_hr = ((luminance(images).double() * 255).round().numpy() for images in (sr, hr))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return [
        float(structural_similarity(a, b, data_range=255.0, **window))
        for a, b in zip(y_sr, y_hr, strict=True)
    ]


def radial_log_spectrum(images: Tensor, num_bands: int = NUM_BANDS) -> Tensor:
    """Log power of the luminance mean in rings of frequency: (N, 3, H, W) -> (N, bands).

    The image is centred and tapered by a Hann window; rings are equally wide up to the Nyquist frequency.
    """
    y = images.mean(dim=1)
    height, width = y.shape[1:]
    window = torch.hann_window(height, periodic=False)[:, None] * torch.hann_window(width, periodic=False)
    centred = y - y.mean(dim=(1, 2), keepdim=True)
    power = torch.fft.fft2(centred * window.to(y.device)).abs().square()
    radius = torch.sqrt(torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.fftfreq(width)[None] ** 2)
    band = (radius / 0.5 * num_bands).long()
    means = [power[:, (band == i).to(y.device)].mean(dim=1) for i in range(num_bands)]
    return torch.log(torch.stack(means, dim=1) + 1e-8)


def spectral_distance(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute difference of natural-log radial spectra: (N, 3, H, W) twice -> (N,)."""
    return (radial_log_spectrum(sr) - radial_log_spectrum(hr)).abs().mean(dim=1)


class Guards:
    """PSNR-Y, SSIM, spectral distance and FSIM of restorations whose HR is known.

    FSIM comes from pyiqa, an extra; without it `missing` says so and the others are reported.
    """

    def __init__(self) -> None:
        self.missing: str | None = None
        self.fsim: Reward | None = None
        if importlib.util.find_spec("pyiqa") is None:
            self.missing = "FSIM is not reported: pyiqa is not installed (pip install 'lucidnft[iqa]')"
        else:
            self.fsim = IQAReward("fsim")

    def scores(self, restored: list[RestoredBatch]) -> dict[str, list[float]]:
        """{guard: one number per image}, in order; empty when no HR is known."""
        scores: dict[str, list[float]] = {}
        for part in restored:
            if part.batch.hr is not None:
                for name, values in self.of_batch(part.sr.cpu(), part.batch.hr.cpu()).items():
                    scores.setdefault(name, []).extend(values)
        return scores

    def of_batch(self, sr: Tensor, hr: Tensor) -> dict[str, list[float]]:
        """The guards of (N, 3, H, W) images against their references, both in the 8-bit steps of saved files."""
        sr, hr = (tensor_to_uint8(images).float() / 255 for images in (sr, hr))
        scores = {
            "psnr_y": psnr_y(sr, hr).tolist(),
            "ssim": ssim_y(sr, hr),
            "spectral_distance": spectral_distance(sr, hr).tolist(),
        }
        if self.fsim is not None:
            scores["fsim"] = self.fsim(sr, hr=hr).tolist()
        return scores

    def means(self, restored: list[RestoredBatch]) -> dict[str, float]:
        """Means of `scores`."""
        return {name: sum(v) / len(v) for name, v in self.scores(restored).items()}
