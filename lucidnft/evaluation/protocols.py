"""Named conventions of published tables: which numbers "PSNR" or "MANIQA" mean, and how tables show them.

Two tables agree only when colour space, border, crop of the benchmark and weights of every metric agree;
that is what a protocol's name stands for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lucidnft.rewards.full_reference import ColorSpace

ProtocolName = Literal["stablesr_crop", "full_image", "full_image_border4", "rgb"]

PROTOCOL_METRICS = ("psnr", "ssim")
"""What a protocol sets options of; any other pyiqa name has pyiqa's own options."""


@dataclass(frozen=True)
class Protocol:
    """How PSNR and SSIM are computed, and what a benchmark's images have to be for the tables to compare."""

    name: ProtocolName
    summary: str  # one sentence, printed with every table
    color_space: ColorSpace
    crop_border: int  # pixels left out on every side, of PSNR and SSIM
    hr_size: int | None  # side of the square HR images that the tables are made on; None: any
    metrics: tuple[str, ...]  # what the papers' tables have


_WITH_HR = ("psnr", "ssim", "lpips", "dists", "niqe", "musiq", "maniqa-pipal", "clipiqa")
_PAPER_OF_LUCIDNFT = ("clipiqa+", "qalign", "musiq", "maniqa", "nima", "clipiqa", "niqe")

PROTOCOLS: dict[ProtocolName, Protocol] = {
    "stablesr_crop": Protocol(
        "stablesr_crop",
        "PSNR and SSIM on the Y of YCbCr (BT.601, 16 to 235), no border cropped; benchmark images are StableSR's "
        "centre crops, LR 128 and HR 512 pixels (tables of StableSR, OSEDiff, PiSA-SR, TSD-SR).",
        color_space="ycbcr_y",
        crop_border=0,
        hr_size=512,
        metrics=_WITH_HR,
    ),
    "full_image": Protocol(
        "full_image",
        "PSNR and SSIM on the Y of YCbCr (BT.601, 16 to 235), no border cropped; whole images "
        "(tables of LucidFlux, LucidNFT, FluxSR).",
        color_space="ycbcr_y",
        crop_border=0,
        hr_size=None,
        metrics=_PAPER_OF_LUCIDNFT,
    ),
    "full_image_border4": Protocol(
        "full_image_border4",
        "PSNR and SSIM on the Y of YCbCr (BT.601, 16 to 235), 4 pixels cropped from every side; whole images "
        "(classical x4 super-resolution).",
        color_space="ycbcr_y",
        crop_border=4,
        hr_size=None,
        metrics=_WITH_HR,
    ),
    "rgb": Protocol(
        "rgb",
        "PSNR and SSIM on RGB, no border cropped; whole images.",
        color_space="rgb",
        crop_border=0,
        hr_size=None,
        metrics=_WITH_HR,
    ),
}

_SHOWN: dict[str, tuple[str, int]] = {  # name -> (label that says the weights, digits behind the point)
    "psnr": ("PSNR", 2),
    "psnry": ("PSNR (Y of YIQ)", 2),
    "ssim": ("SSIM", 4),
    "ssimc": ("SSIM (RGB)", 4),
    "ms_ssim": ("MS-SSIM", 4),
    "fsim": ("FSIM", 4),
    "vif": ("VIF", 4),
    "gmsd": ("GMSD", 4),
    "lpips": ("LPIPS (Alex)", 4),
    "lpips-vgg": ("LPIPS (VGG)", 4),
    "dists": ("DISTS", 4),
    "niqe": ("NIQE", 3),
    "piqe": ("PIQE", 2),
    "musiq": ("MUSIQ (KonIQ)", 2),
    "maniqa": ("MANIQA (KonIQ)", 4),
    "maniqa-pipal": ("MANIQA (PIPAL)", 4),
    "maniqa-kadid": ("MANIQA (KADID)", 4),
    "clipiqa": ("CLIP-IQA", 4),
    "clipiqa+": ("CLIP-IQA+", 4),
    "qalign": ("Q-Align", 3),
    "nima": ("NIMA (AVA)", 3),
    "topiq_nr": ("TOPIQ", 4),
    "liqe": ("LIQE", 3),
    "lucid_consistency": ("LucidConsistency", 4),
    "quality_net": ("QualityNet", 4),
    "lr_fidelity": ("LR fidelity", 4),
}


def label_of(metric: str, settings: Mapping[str, Any] | None = None) -> str:
    """What a table's head calls a metric: the papers' name with the weights where several exist.

    settings: of the reward, where known.  LucidConsistency is the papers' with Qwen3-VL only, so the label says what
    embeds: "LucidConsistency (tiny)" for what the name alone builds.
    """
    label = _SHOWN[metric][0] if metric in _SHOWN else metric
    if metric != "lucid_consistency" or settings is None or settings.get("type") != metric:
        return label
    embedder = {"qwen3_vl": "Qwen3-VL"}.get(settings["embedder"]["type"], settings["embedder"]["type"])
    return f"{label} ({embedder}{', no head' if settings['head'] is None else ''})"


def decimals_of(metric: str, largest: float) -> int:
    """Digits behind the point, as the papers have them; for other metrics by the size of the largest number."""
    if metric in _SHOWN:
        return _SHOWN[metric][1]
    return 2 if largest >= 10 else 3 if largest >= 2 else 4
