"""The tiny backbone: a x4 restorer small enough to train and fine-tune on two CPU cores.

Its latent is the image itself in [-1, 1], times LATENT_SCALE so that the part the LR image does not
determine (HR minus the up-sampled LR) has a spread near 1.  The network sees the noisy residual
y_t = x_t - (1 - t) x_up and predicts the clean residual with the preconditioning of EDM (arXiv
2206.00364, section 5) carried over to the straight path for data of unit variance.  Written as a
velocity that is, with D = (1 - t)^2 + t^2 and F the network's output,

    v_residual = y_t (2 t - 1) / D - F / sqrt(D),        v = v_residual - x_up,

so nothing is divided by t.

The coarse part of the residual, its means over 8 x 8 pixels and more, is not left to the network: brightness
and tint of an LR photograph are right as they are, and what a network adds to them is error.  There the
velocity is that of independent normal pixels of standard deviation s = COARSE_SPREAD, in closed form,

    v_coarse = coarse(y_t) (t - (1 - t) s^2) / (t^2 + (1 - t)^2 s^2),

and no fine-tuning can shift colours, however noisy its updates (docs/negative_results.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lucidnft.backbones.adapters import LoraSettings
from lucidnft.backbones.base import LatentSpec
from lucidnft.backbones.precision import autocast_region
from lucidnft.backbones.tiny_network import TinyArchitecture, TinyNetwork, TinyTrunk
from lucidnft.checkpoint import load_header, load_tensors, save_tensors
from lucidnft.checkpoint.fingerprint import fingerprint
from lucidnft.filters import gaussian_blur
from lucidnft.flow.conversions import expand_time
from lucidnft.flow.schedules import shifted_time_grid
from lucidnft.images import resize
from lucidnft.records import Condition

LATENT_SCALE = 5.0
WEIGHTS_FORMAT = "lucidnft.tiny_backbone.1"
DEFAULT_SHIFT = 0.3
COARSE_CELL = 8
COARSE_SPREAD = 0.1
"""Of coarse(x_0 - x_up), measured: 0.07 to 0.13 on photographs degraded as in training."""


class TinyBackbone:
    """`lucidnft.backbones.base.Backbone` for the network that ships."""

    name = "tiny"
    upscale: int | None = 4
    default_num_steps = 4
    pre_restores = False
    latent_spec = LatentSpec(channels=3, downscale=1, multiple=8)
    lora_modules: tuple[str, ...] = ("conv1", "conv2")
    lora_groups: Mapping[str, tuple[str, ...]] = {}

    def __init__(
        self,
        network: TinyNetwork,
        architecture: TinyArchitecture,
        *,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        """autocast_dtype: dtype of the network's matrix products; None keeps float32."""
        self.module = network  # LR encoder and trunk
        self.architecture = architecture
        self.autocast_dtype = autocast_dtype
        self.fingerprint = fingerprint(network.state_dict())

    @property
    def network(self) -> TinyTrunk:
        """What takes adapters: the time-dependent trunk, not the LR encoder."""
        return self.module.trunk

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Everything with weights, by name."""
        return {"network": self.module}

    @classmethod
    def initialise(cls, architecture: TinyArchitecture | None = None, *, seed: int = 0) -> TinyBackbone:
        """A fresh network with random weights drawn from `seed`."""
        architecture = architecture or TinyArchitecture()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = TinyNetwork(architecture)
        return cls(network, architecture)

    @classmethod
    def from_pretrained(cls, path_or_name: str | Path = "tiny") -> TinyBackbone:
        """Load weights: "tiny" for those that ship, or a .safetensors file written by `save_pretrained`.

        Raises:
            ValueError: not such a file, or keys and shapes do not match its own header.
        """
        if str(path_or_name) == "tiny":
            with resources.as_file(resources.files("lucidnft.assets") / "tiny_base.safetensors") as asset:
                return cls._load(asset)
        return cls._load(Path(path_or_name))

    @classmethod
    def _load(cls, path: Path) -> TinyBackbone:
        header = load_header(path)
        if header.get("format") != WEIGHTS_FORMAT:
            raise ValueError(
                f"{path} is not a tiny backbone: its header says format {header.get('format')!r}, "
                f"expected {WEIGHTS_FORMAT!r}"
            )
        architecture = TinyArchitecture.model_validate(header["architecture"])
        with torch.device("meta"):
            network = TinyNetwork(architecture)
        tensors, _ = load_tensors(path, expected=network.state_dict())
        network.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)
        return cls(network.to(memory_format=torch.channels_last), architecture)

    def save_pretrained(self, path: str | Path, *, dtype: torch.dtype = torch.float32, **card: Any) -> None:
        """Write the base weights with their architecture (and any card fields) in the header."""
        tensors = {k: v.detach().to(dtype).contiguous() for k, v in self.module.state_dict().items()}
        header = {"format": WEIGHTS_FORMAT, "architecture": self.architecture.model_dump(), **card}
        save_tensors(path, tensors, header)

    def to(self, device: torch.device | str) -> TinyBackbone:
        """Move the network."""
        self.module.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.module.parameters()).device

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time."""
        self.network.gradient_checkpointing = enabled

    def autocast(self) -> AbstractContextManager[Any]:
        """The autocast region of every call of the network."""
        return autocast_region(self.device, self.autocast_dtype)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> x_0 (B, 3, H, W) in [-5, 5]."""
        return LATENT_SCALE * (2 * images - 1)

    def decode(self, x_0: Tensor) -> Tensor:
        """x_0 (B, 3, H, W) -> (B, 3, H, W) float32 clamped to [0, 1]."""
        return (x_0.float() / (2 * LATENT_SCALE) + 0.5).clamp(0, 1)

    def encode_condition(
        self, lr: Tensor, *, upscale: int = 4, prompts: tuple[str, ...] | None = None
    ) -> Condition:
        """lr (G, 3, h, w) in [0, 1] -> fields up (G, 3, 4h, 4w) in [-1, 1], features (G, D, h, w).

        Raises:
            ValueError: another upscale than 4, or an LR side that is odd (pad before, crop after).
        """
        if upscale != self.upscale:
            raise ValueError(f"backbone 'tiny' restores x{self.upscale}, asked for x{upscale}")
        height, width = lr.shape[2] * upscale, lr.shape[3] * upscale
        self.latent_spec.grid(height, width)
        up = 2 * resize(lr, (height, width)) - 1
        with self.autocast():
            features = self.module.lr_encoder(
                (2 * lr - 1).to(self.device).contiguous(memory_format=torch.channels_last)
            )
        return Condition({"up": up.to(self.device), "features": features})

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition, **options: Any) -> Tensor:
        """x_t (B, 3, H, W), t (B,) in [0, 1], condition of B rows -> v (B, 3, H, W) float32.

        Raises:
            ValueError: an option this backbone does not know (it has none).
        """
        if options:
            raise ValueError(f"backbone 'tiny' takes no options, got {sorted(options)}")
        time = expand_time(t, x_t)
        up = condition["up"]
        y_t = x_t - (1 - time) * (LATENT_SCALE * up)
        spread = (1 - time) ** 2 + time**2
        with self.autocast():
            out = self.network(y_t * spread.rsqrt(), t, up, condition["features"])
        v_residual = y_t * ((2 * time - 1) / spread) - out.float() * spread.rsqrt()
        v_coarse = y_t * coarse_velocity_factor(time)
        return v_residual + coarse(v_coarse - v_residual) - LATENT_SCALE * up

    def default_time_grid(self, num_steps: int, height: int, width: int) -> Tensor:
        """Steps towards the clean end, the same at every size (the noisy residual always has unit spread).

        Most of an image is decided by its LR version, so one long first step loses little, and the steps
        after it remove the noise that uniform steps leave in flat regions (docs/benchmarks.md).
        """
        return shifted_time_grid(num_steps, DEFAULT_SHIFT)


def coarse(x: Tensor) -> Tensor:
    """(B, C, H, W) -> same: means over 8 x 8 pixels, smoothed and interpolated; linear.  H, W divisible by 8."""
    means = gaussian_blur(F.avg_pool2d(x, COARSE_CELL), 1.0)
    return F.interpolate(means, size=x.shape[2:], mode="bilinear")


def coarse_velocity_factor(time: Tensor) -> Tensor:
    """E[noise - x_0 | x_t] / x_t for x_0 ~ N(0, COARSE_SPREAD^2), at times of any shape."""
    variance = COARSE_SPREAD**2
    return (time - (1 - time) * variance) / (time**2 + (1 - time) ** 2 * variance)


class TinyBackboneConfig(LoraSettings):
    """`model:` section of a run with the tiny backbone."""

    type: Literal["tiny"] = "tiny"
    model_name_or_path: str | None = "tiny"  # the weights that ship, a file, or null for a fresh network
    architecture: TinyArchitecture = TinyArchitecture()  # read only when model_name_or_path is null

    def build(self, *, seed: int = 0) -> TinyBackbone:
        """The backbone on the CPU, in float32."""
        if self.model_name_or_path is None:
            return TinyBackbone.initialise(self.architecture, seed=seed)
        return TinyBackbone.from_pretrained(self.model_name_or_path)

    def build_skeleton(self) -> TinyBackbone:
        """The backbone without values, on the meta device: what memory is planned with.

        Its sizes are those of the weights, or of `architecture` if the file is not there.
        """
        name = self.model_name_or_path
        if name in (None, "tiny") or Path(str(name)).exists():
            return self.build().to("meta")
        return TinyBackbone.initialise(self.architecture).to("meta")
