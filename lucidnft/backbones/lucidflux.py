"""LucidFlux (arXiv 2509.22414): FLUX.1-dev with a dual-branch conditioner, as a backbone.

Departure from the released script: an LR image keeps its aspect ratio and may have any size; there it is squeezed to
1024 x 1024.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lucidnft.backbones.base import LatentSpec
from lucidnft.backbones.image_conditions import ImageConditions, public_settings
from lucidnft.backbones.lora_groups import lucidflux_groups
from lucidnft.backbones.lucidflux_architecture import LucidFluxArchitecture, SwinIRSizes
from lucidnft.backbones.lucidflux_encoders import LucidFluxEncoders, PromptEmbeddings, check_prompt
from lucidnft.backbones.lucidflux_network import LucidFluxNetwork
from lucidnft.backbones.lucidflux_weights import (
    build_encoders,
    build_network,
    load_encoders,
    load_network,
    read_lucidflux_file,
    read_prompt_embeddings,
)
from lucidnft.backbones.precision import autocast_region
from lucidnft.checkpoint.fingerprint import sampled_fingerprint
from lucidnft.flow.schedules import resolution_shifted_time_grid, shifted_time_grid
from lucidnft.images import resize
from lucidnft.records import Condition

TimeGrid = Literal["release", "flux"]


class LucidFluxBackbone:
    """`lucidnft.backbones.base.Backbone` for LucidFlux."""

    name = "lucidflux"
    upscale: int | None = None
    default_num_steps = 24
    pre_restores = True

    def __init__(
        self,
        network: LucidFluxNetwork,
        encoders: LucidFluxEncoders,
        prompt: PromptEmbeddings,
        *,
        time_grid: TimeGrid = "release",
        guidance_scale: float = 4.0,
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            time_grid: "release" solves on the grid of the released script, whose shift belongs to far fewer tokens
                than the image has; "flux" on FLUX's own (see `default_time_grid`).
            guidance_scale: of the guidance embedding; there is no classifier-free guidance.
            autocast_dtype: of the network's matrix products; None computes in the dtype of its weights.

        Raises:
            ValueError: prompt embeddings of other widths, or an unknown time grid.
        """
        config = network.transformer.config
        check_prompt(prompt, config.joint_attention_dim, config.pooled_projection_dim)
        if time_grid not in ("release", "flux"):
            raise ValueError(f"time_grid is {time_grid!r}, expected 'release' or 'flux'")
        self.module = network
        self.encoders = encoders
        self.prompt = prompt
        self.time_grid = time_grid
        self.guidance_scale = guidance_scale
        self.autocast_dtype = autocast_dtype
        # 16 px: the autoencoder shrinks by 8 and FLUX packs 2 x 2 latent cells into a token
        self.latent_spec = LatentSpec(encoders.vae.config.latent_channels, downscale=8, multiple=16)
        self.fingerprint = sampled_fingerprint(network.state_dict())
        self.lora_groups = lucidflux_groups(network)
        self.lora_modules = self.lora_groups["attention"]
        image_encoders = {name: encoders.get_submodule(name) for name in ("swinir", "siglip", "connector")}
        siglip = encoders.siglip.config
        self.image_conditions = ImageConditions(
            self.name,
            image_encoders,
            lambda: {**public_settings(siglip.to_dict()), "attention": siglip._attn_implementation},
        )

    @classmethod
    def initialise(
        cls,
        architecture: LucidFluxArchitecture,
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> LucidFluxBackbone:
        """Random weights and a random prompt drawn from `seed`.  options: as the constructor's.

        As in training from scratch, the conditioner's last layers are zero, so the velocity is the trunk's.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network, encoders = build_network(architecture), build_encoders(architecture)
            sizes = architecture.transformer
            text = torch.randn(1, architecture.num_text_tokens, sizes.joint_attention_dim)
            prompt = PromptEmbeddings(text.to(dtype), torch.randn(1, sizes.pooled_projection_dim).to(dtype))
        # the pre-restorer stays in float32
        for part in (network, encoders.vae, encoders.siglip, encoders.connector):
            if dtype != torch.float32:
                nn.Module.to(part, dtype)  # diffusers' own warns of every cast
        return cls(network, encoders, prompt, **options)

    @classmethod
    def from_pretrained(
        cls,
        flux: str,
        *,
        lucidflux_weights: str | Path,
        swinir_weights: str | Path,
        siglip: str,
        prompt_embeddings: str | Path,
        swinir_sizes: SwinIRSizes | None = None,
        dtype: torch.dtype = torch.bfloat16,
        **options: Any,
    ) -> LucidFluxBackbone:
        """The released model.

        Args:
            flux, siglip: folders or repository ids, FLUX.1-dev's in diffusers' layout.
            lucidflux_weights, swinir_weights, prompt_embeddings: files.
            swinir_sizes: None takes the released ones.
            dtype: of the weights.
            options: as the constructor's.

        Raises:
            FileNotFoundError, ValueError: a file is missing, damaged, or another model's.
        """
        parts = read_lucidflux_file(lucidflux_weights)
        network = load_network(flux, parts, str(lucidflux_weights), dtype=dtype)
        encoders = load_encoders(
            flux,
            siglip,
            swinir_weights,
            parts["connector"],
            swinir_sizes=swinir_sizes or SwinIRSizes(),
            dtype=dtype,
        )
        config = network.transformer.config
        prompt = read_prompt_embeddings(
            prompt_embeddings, config.joint_attention_dim, config.pooled_projection_dim
        )
        return cls(network, encoders, prompt, **options)

    @property
    def network(self) -> LucidFluxNetwork:
        """What takes adapters: the trunk and the conditioner."""
        return self.module

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Everything with weights, by name."""
        return {
            "trunk": self.network.transformer,
            "conditioner": self.network.conditioner,
            "autoencoder": self.encoders.vae,
            "pre-restorer": self.encoders.swinir,
            "SigLIP": self.encoders.siglip,
            "connector": self.encoders.connector,
        }

    @property
    def vae(self) -> Any:
        """The autoencoder."""
        return self.encoders.vae

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> LucidFluxBackbone:
        """Move the network, the encoders and the prompt."""
        self.network.to(device)
        self.encoders.vae.to(device)
        self.image_conditions.to(device)
        self.prompt = PromptEmbeddings(self.prompt.text.to(device), self.prompt.pooled.to(device))
        return self

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute each block's activations in the backward pass, in the trunk and in both branches."""
        conditioner: Any = self.network.conditioner
        for part in (self.network.transformer, conditioner.condition_lq, conditioner.condition_ldr):
            if enabled:
                part.enable_gradient_checkpointing()
            else:
                part.disable_gradient_checkpointing()

    def autocast(self) -> AbstractContextManager[Any]:
        """The autocast region of every call of the network."""
        return autocast_region(self.device, self.autocast_dtype)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> x_0 (B, 16, H/8, W/8) float32."""
        self.latent_spec.grid(*images.shape[2:])
        return self.encoders.encode(images)

    def decode(self, x_0: Tensor) -> Tensor:
        """x_0 (B, 16, h, w) -> (B, 3, 8h, 8w) float32 clamped to [0, 1]."""
        return self.encoders.decode(x_0)

    @torch.no_grad()
    def encode_condition(
        self, lr: Tensor, *, upscale: int, prompts: tuple[str, ...] | None = None
    ) -> Condition:
        """lr (G, 3, H/r, W/r) in [0, 1] -> everything about it that does not depend on the time.

        prompts are not read: LucidFlux restores under one prompt, which was encoded beforehand.

        Returns:
            Fields lq and pre_restored (G, 3, H, W) in [-1, 1], siglip (G, tokens, D), text (G, tokens, D) and
            pooled (G, P).

        Raises:
            ValueError: H or W is not a multiple of 16 (pad before, crop after).
        """
        groups, _, height, width = lr.shape
        size = (height * upscale, width * upscale)
        self.latent_spec.grid(*size)

        def encode(image: Tensor) -> dict[str, Tensor]:
            pre_restored = self.encoders.pre_restore(resize(image, size))
            return {"pre_restored": 2 * pre_restored - 1, "siglip": self.encoders.image_tokens(pre_restored)}

        return Condition(
            {
                "lq": 2 * resize(lr.to(self.device), size) - 1,
                **self.image_conditions.fields(lr, upscale=upscale, device=self.device, encode=encode),
                "text": self.prompt.text.to(self.device).expand(groups, -1, -1),
                "pooled": self.prompt.pooled.to(self.device).expand(groups, -1),
            }
        )

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition, **options: Any) -> Tensor:
        """x_t (B, 16, h, w), t (B,) in [0, 1], condition of B rows -> v (B, 16, h, w) float32.

        In half precision diffusers rounds t to it as well, as the released script does.

        Raises:
            ValueError: an option (there is none), or a condition of other images than 8h x 8w.
        """
        if options:
            raise ValueError(f"backbone 'lucidflux' takes no options, got {sorted(options)}")
        size = tuple(8 * side for side in x_t.shape[2:])
        if tuple(condition["lq"].shape[2:]) != size or len(condition) != len(x_t):
            raise ValueError(
                f"{len(x_t)} latents of {size[0]}x{size[1]} px do not go with a condition of {len(condition)} "
                f"images of shape {tuple(condition['lq'].shape[1:])}; index it to one row per latent"
            )
        # read where a parameter is read, for one that is trained is held in float32 but computed with in this
        dtype = self.autocast_dtype or self.network.transformer.x_embedder.weight.dtype
        inputs = {name: value.to(dtype) for name, value in condition.fields.items()}
        with self.autocast():
            v: Tensor = self.network(x_t.to(dtype), t.float(), guidance_scale=self.guidance_scale, **inputs)
        return v.float()

    def default_time_grid(self, num_steps: int, height: int, width: int) -> Tensor:
        """(S + 1,) from 1 to 0, shifted towards noise for H x W pixels by the option `time_grid`.

        "flux": FLUX's shift for the image's number of tokens, 3.158 at 1024 x 1024.  "release": the same formula for
        a 16th of the latent's sides, 64 instead of 4096 tokens there, so 1.596; what the released weights' results
        were made with.
        """
        if self.time_grid == "flux":
            return resolution_shifted_time_grid(num_steps, (height // 16) * (width // 16))
        return shifted_time_grid(num_steps, release_shift(height, width))


def release_shift(height: int, width: int) -> float:
    """The shift factor of the released script for H x W pixels.

    FLUX's formula written out: the script's length is 0 for small images, which no number of tokens is.
    """
    length = (height // 8) * (width // 8) // 16**2
    return math.exp(0.5 + (1.15 - 0.5) * (length - 256) / (4096 - 256))
