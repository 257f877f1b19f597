"""The ranges that the degradation presets draw from, as tables.

Sources: Wang et al., Real-ESRGAN (2021), with the settings of its x4plus model; StableSR for the kernels and
StableSR, SeeSR and PiSA-SR for the rest of `light`; Zhang et al., BSRGAN (2021).
"""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True)
class KernelRanges:
    """What the random blur kernels of one stage are drawn from; sigmas in pixels, angles in radians."""

    sigma: Range
    generalised_beta: Range
    plateau_beta: Range
    sizes: tuple[int, int] = (7, 21)  # odd sizes, both ends included
    sinc_probability: float = 0.1
    # isotropic, anisotropic, generalised iso and aniso, plateau iso and aniso
    shape_probabilities: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)


@dataclass(frozen=True)
class StageRanges:
    """One pass of blur, resize, noise, JPEG.  Gaussian sigma in units of 1/255."""

    kernel: KernelRanges
    blur_probability: float
    resize_probabilities: tuple[float, float, float]  # up, down, keep
    resize: Range
    gaussian_sigma: Range
    poisson_scale: Range
    jpeg_quality: tuple[int, int]
    gaussian_probability: float = 0.5  # otherwise Poisson
    grey_noise_probability: float = 0.4


@dataclass(frozen=True)
class SecondOrderRanges:
    """The two stages of Real-ESRGAN and what ends the second."""

    first: StageRanges
    second: StageRanges
    final_sinc_probability: float = 0.8
    final_sinc_sizes: tuple[int, int] = (7, 21)


@dataclass(frozen=True)
class BsrganRanges:
    """BSRGAN's ranges; s is the scale still to be made."""

    initial_halving_probability: float = 0.25  # only at x4
    blur_sizes: tuple[int, int] = (7, 25)
    anisotropic_variance_offset: float = 4.0  # eigenvalues up to 4 + s
    isotropic_sigma: tuple[float, float] = (2.0, 0.2)  # sigma up to 2 + 0.2 s
    smallest_variance: float = 0.01  # ours: keeps the kernel defined where the original would divide by zero
    plain_resize_probability: float = 0.75  # by 1..2s; otherwise blur of 0.1..0.6 s and every s-th pixel
    stride_sigma: tuple[float, float] = (0.1, 0.6)  # 0.1 pixels to 0.6 s pixels
    noise_levels: tuple[int, int] = (2, 25)
    noise_kinds: tuple[float, float, float] = (0.4, 0.4, 0.2)  # colour, grey, channel-correlated
    jpeg_probability: float = 0.9
    jpeg_quality: tuple[int, int] = (30, 95)


REALESRGAN = SecondOrderRanges(
    first=StageRanges(
        kernel=KernelRanges((0.2, 3.0), (0.5, 4.0), (1.0, 2.0)),
        blur_probability=1.0,
        resize_probabilities=(0.2, 0.7, 0.1),
        resize=(0.15, 1.5),
        gaussian_sigma=(1, 30),
        poisson_scale=(0.05, 3.0),
        jpeg_quality=(30, 95),
    ),
    second=StageRanges(
        kernel=KernelRanges((0.2, 1.5), (0.5, 4.0), (1.0, 2.0)),
        blur_probability=0.8,
        resize_probabilities=(0.3, 0.4, 0.3),
        resize=(0.3, 1.2),
        gaussian_sigma=(1, 25),
        poisson_scale=(0.05, 2.5),
        jpeg_quality=(30, 95),
    ),
)
LIGHT = SecondOrderRanges(
    first=StageRanges(
        kernel=KernelRanges((0.2, 1.5), (0.5, 2.0), (1.0, 1.5)),
        blur_probability=1.0,
        resize_probabilities=(0.2, 0.7, 0.1),
        resize=(0.3, 1.5),
        gaussian_sigma=(1, 15),
        poisson_scale=(0.05, 2.0),
        jpeg_quality=(60, 95),
    ),
    second=StageRanges(
        kernel=KernelRanges((0.2, 1.0), (0.5, 2.0), (1.0, 1.5)),
        blur_probability=0.5,
        resize_probabilities=(0.3, 0.4, 0.3),
        resize=(0.6, 1.2),
        gaussian_sigma=(1, 12),
        poisson_scale=(0.05, 1.0),
        jpeg_quality=(60, 100),
    ),
)
BSRGAN = BsrganRanges()
