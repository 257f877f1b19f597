"""pyiqa metrics as rewards: direction and range from pyiqa's own table, sign flipped once here.

pyiqa is heavy and licensed for non-commercial use (PolyForm Noncommercial 1.0.0), so it is imported
when a metric is built, never when this module is.  Its metrics that need no downloaded weights are
psnr, psnry, ssim, ssimc, ms_ssim, cw_ssim, fsim, vif, gmsd, nlpd, vsi, mad, piqe and entropy.  The two
no-reference ones among them (piqe, entropy) rank coloured noise above photographs: usable, but not
as a reward.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from lucidnft.checkpoint.required_files import RequiredFile
from lucidnft.rewards.base import Reference, Reward, RewardCard
from lucidnft.rewards.model_files import pyiqa_files
from lucidnft.rng import PreservedGlobalRng
from lucidnft.schema import ConfigModel

LICENCE = "pyiqa: PolyForm Noncommercial 1.0.0"

# Smallest side in pixels at which the metric is defined; found by running pyiqa 0.1.16.
MIN_SIZES = {
    "ssim": 11,
    "ssimc": 11,
    "ms_ssim": 161,
    "cw_ssim": 64,
    "vif": 41,
    "niqe": 96,
    "niqe_matlab": 96,
    "ilniqe": 96,
}
# Metrics that read one image at a time, whatever the batch.
SINGLE_IMAGE = ("qalign", "qrealign", "compare2score")
# Metrics of sets of images: no score per image exists.
SET_METRICS = ("fid", "fid_dinov2", "fid_mmd", "inception_score", "kid", "msswd_set")


def metric_names() -> list[str]:
    """Every metric name pyiqa knows.  Raises ImportError when pyiqa is missing."""
    return list(import_pyiqa().list_models())


def full_reference_names() -> list[str]:
    """The metrics of pyiqa that need an HR image; none is loaded.  Raises ImportError when pyiqa is missing."""
    return list(import_pyiqa().list_models(metric_mode="FR"))


def import_pyiqa() -> ModuleType:
    """The pyiqa module, or an ImportError that says which extra installs it."""
    try:
        import pyiqa
    except ImportError as error:
        raise ImportError(
            f"rewards on image-quality metrics need pyiqa, which could not be imported ({error}); "
            "run: pip install 'lucidnft[iqa]' (torch and torchvision must come from the same index)"
        ) from error
    return pyiqa


def parse_range(text: str | None) -> tuple[float, float] | None:
    """pyiqa's range text, e.g. "0, 100" -> (0.0, 100.0); rough or open ranges ("~0, ~40", "0, ~") -> None."""
    parts = [part.strip() for part in (text or "").split(",")]
    try:
        low, high = (float(part) for part in parts)
    except ValueError:
        return None
    return low, high


class IQAReward(Reward):
    """Any pyiqa metric by name; scores are negated where pyiqa says lower is better.

    Scores have no gradient.  Images are scored in float32, clamped to [0, 1].
    """

    OPTIONAL_EXTRA = "iqa"

    def __init__(self, metric: str, **metric_options: Any) -> None:
        """metric: a pyiqa name such as "musiq" or "fsim"; metric_options go to pyiqa unchanged.

        Raises:
            ImportError: pyiqa, or a package that this one metric needs, is missing.
            ValueError: the name is unknown, or the metric scores sets of images.
            RuntimeError: its weights are neither cached nor reachable, or damaged.
        """
        self.metric = metric
        self._network: Any = create_metric(metric, metric_options)
        self._needs_hr = self._network.metric_mode == "FR"
        self._one_by_one = metric.startswith(SINGLE_IMAGE)
        self._device = torch.device("cpu")
        lower_is_better = bool(self._network.lower_better)
        raw_range = parse_range(str(self._network.score_range))
        if raw_range is not None and lower_is_better:
            raw_range = (-raw_range[1], -raw_range[0])
        self.card = RewardCard(
            name=metric,
            needs=frozenset({"hr"}) if self._needs_hr else frozenset(),
            lower_is_better=lower_is_better,
            value_range=raw_range,
            min_size=MIN_SIZES.get(metric, 1),
            note=f"pyiqa metric {metric}, {'negated' if lower_is_better else 'as it is'}. {LICENCE}.",
        )

    def reference(
        self,
        lr: Tensor | None,
        hr: Tensor | None,
        prompts: Sequence[str] | None,
        sr_size: tuple[int, int],
    ) -> Reference:
        """The HR images themselves for full-reference metrics (pyiqa offers no features to keep)."""
        if not self._needs_hr:
            return {}
        return {"hr": required_hr(hr, sr_size, self.card.name).to(self._device)}

    def score(self, sr: Tensor, reference: Reference) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N,) float32, higher is better."""
        images = (sr.to(self._device), *([reference["hr"]] if self._needs_hr else []))
        images = tuple(image.float().clamp(0, 1) for image in images)
        step = 1 if self._one_by_one else max(1, sr.shape[0])
        parts = []
        with PreservedGlobalRng(), torch.no_grad():
            for start in range(0, sr.shape[0], step):
                chunk = [image[start : start + step] for image in images]
                parts.append(self._network(*chunk).float().reshape(-1))
        scores = torch.cat(parts)
        return -scores if self.card.lower_is_better else scores

    def to(self, device: torch.device | str) -> IQAReward:
        """Move the metric's network; images are moved to it when scored."""
        self._device = torch.device(device)
        self._network.to(self._device)
        return self


def required_hr(hr: Tensor | None, sr_size: tuple[int, int], reward: str) -> Tensor:
    """hr, checked to be there and of the size to score; it is never resized.  Raises ValueError."""
    if hr is None:
        raise ValueError(f"reward '{reward}' needs an HR reference; remove it or use data that has one")
    if tuple(hr.shape[2:]) != tuple(sr_size):
        raise ValueError(
            f"reward '{reward}': hr is {hr.shape[2]}x{hr.shape[3]} px but sr is {sr_size[0]}x{sr_size[1]}; "
            "they must agree, nothing is resized"
        )
    return hr


def create_metric(metric: str, options: dict[str, Any]) -> torch.nn.Module:
    """The pyiqa network on the CPU (moving it later works; creating it elsewhere pins its inputs)."""
    pyiqa = import_pyiqa()
    known = pyiqa.list_models()
    if metric not in known:
        near = difflib.get_close_matches(metric, known, n=4, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else f"; pyiqa knows {len(known)} metrics"
        raise ValueError(f"'{metric}' is not a metric of pyiqa{hint}")
    if metric in SET_METRICS or metric.startswith("fid"):
        raise ValueError(f"metric '{metric}' compares sets of images and has no score per image")
    try:
        with PreservedGlobalRng():
            return pyiqa.create_metric(metric, device="cpu", check_input_range=False, **options)
    except ImportError as error:
        raise ImportError(f"pyiqa metric '{metric}' needs a package that is missing: {error}") from error
    except OSError as error:
        raise RuntimeError(
            f"pyiqa metric '{metric}' could not get its weights ({type(error).__name__}: {error}). Without "
            "network, copy them beforehand, file names unchanged, to where pyiqa looks: "
            f"{'; '.join(weight_stores())}"
        ) from error
    except ValueError:  # about the options
        raise
    except Exception as error:  # of pickle, torch or transformers: a damaged file raises any kind
        raise RuntimeError(
            f"pyiqa metric '{metric}' could not be loaded ({type(error).__name__}: {error}). Is a weight file cut "
            f"short, or a web page under its name? Delete it, and it is fetched again; pyiqa looks in: "
            f"{'; '.join(weight_stores())}"
        ) from error


def weight_stores() -> list[str]:
    """Where pyiqa's metrics look for their weights on this machine, each with the host it comes from."""
    hub = Path(torch.hub.get_dir())
    hf_home = os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface"))
    return [
        f"{hub / 'pyiqa'} (huggingface.co, repository chaofengc/IQA-PyTorch-Weights)",
        f"{hub / 'checkpoints'} (download.pytorch.org: lpips, dists and others)",
        f"{hub / 'clip'} (openaipublic.azureedge.net: clipiqa, liqe and others)",
        f"{hf_home} (huggingface.co: timm and vision-language backbones such as maniqa, nima, qalign)",
    ]


class IQAConfig(ConfigModel):
    """Settings of one `IQAReward`."""

    type: Literal["iqa"] = "iqa"
    metric: str
    weight: float = 1.0

    def required_files(self) -> tuple[RequiredFile, ...]:
        """The weights of the metric."""
        return pyiqa_files(self.metric)

    def build(self) -> IQAReward:
        """Make the reward."""
        return IQAReward(self.metric)
