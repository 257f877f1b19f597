"""The DiT4SR backbone: Stable Diffusion 3.5 medium with a stream of LR tokens (arXiv 2503.23580).

The LR image is enlarged to the output size and encoded by the VAE; the network sees its latents beside the noisy
ones.  The network's timestep is 1000 t.  One text serves every image: prompts of a batch are not read.

Departures from the published code: the posterior of the VAE is sampled with noise that is a function of the image, so
an image has one condition, whatever the batch, the step and the run; the default time grid is SD3's shift of
a uniform one, while diffusers' scheduler shifts its end too and so spends its last step on 1 % of the way.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from lucidnft.backbones.autoencoder import Autoencoder, Posterior, build_vae
from lucidnft.backbones.base import LatentSpec
from lucidnft.backbones.dit4sr_architecture import DiT4SRArchitecture
from lucidnft.backbones.dit4sr_network import DiT4SRNetwork, LRKey
from lucidnft.backbones.dit4sr_text import TextEmbeddings
from lucidnft.backbones.image_conditions import ImageConditions
from lucidnft.backbones.lora_groups import dit4sr_groups
from lucidnft.backbones.precision import autocast_region
from lucidnft.checkpoint.fingerprint import sampled_fingerprint
from lucidnft.flow.conversions import expand_time
from lucidnft.flow.guidance import VelocityFunction, classifier_free_guidance
from lucidnft.flow.schedules import shift_time, shifted_time_grid, uniform_time_grid
from lucidnft.images import resize
from lucidnft.records import Condition

TimeGrid = Literal["sd3", "scheduler", "uniform"]

SHIFT = 3.0
"""SD3's, from its scheduler's configuration."""


class DiT4SRBackbone:
    """`lucidnft.backbones.base.Backbone` for DiT4SR."""

    name = "dit4sr"
    upscale: int | None = (
        None  # the network sees the enlarged image, so any factor works; it was trained for 4
    )
    default_num_steps = 40
    pre_restores = False

    def __init__(
        self,
        network: DiT4SRNetwork,
        vae: AutoencoderKL,
        text: TextEmbeddings,
        *,
        guidance_scale: float = 1.0,
        posterior: Posterior = "sample",
        time_grid: TimeGrid = "sd3",
        autocast_dtype: torch.dtype | None = None,
    ) -> None:
        """vae: frozen here.  guidance_scale: 1.0 is off, published 8.0; it holds in rollouts and in training alike.

        Raises:
            ValueError: another posterior or time grid, guidance without a negative prompt, or a VAE whose
                latents the network does not take.
        """
        if time_grid not in get_args(TimeGrid):
            raise ValueError(f"time_grid is {time_grid!r}, expected one of {', '.join(get_args(TimeGrid))}")
        self.autoencoder = Autoencoder(vae, posterior)
        channels, downscale = self.autoencoder.channels, self.autoencoder.downscale
        if channels != network.config["in_channels"]:
            raise ValueError(
                f"the VAE has {channels} latent channels, the transformer takes {network.config['in_channels']}; "
                "they belong to different models"
            )
        self.network = network
        self.text = text
        self.guidance_scale = guidance_scale
        self.time_grid = time_grid
        self.autocast_dtype = autocast_dtype
        self._check_guidance(guidance_scale, text.has_negative)
        multiple = downscale * network.config["patch_size"]
        longest = network.config["pos_embed_max_size"] * multiple
        self.latent_spec = LatentSpec(channels, downscale, multiple, longest)
        weights = {f"transformer.{name}": value for name, value in network.state_dict().items()}
        weights.update({f"vae.{name}": value for name, value in vae.state_dict().items()})
        self.fingerprint = sampled_fingerprint(weights)
        self.lora_groups = dit4sr_groups(network)
        self.lora_modules = self.lora_groups["attention"]
        self.image_conditions = ImageConditions(
            self.name, self.autoencoder.encoding_networks(), self.autoencoder.encoding_options
        )

    @classmethod
    def initialise(
        cls,
        architecture: DiT4SRArchitecture,
        *,
        lr_key: LRKey,
        control_scale: float = 1.2,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        text: TextEmbeddings | None = None,
        **options: Any,
    ) -> DiT4SRBackbone:
        """Random weights drawn from `seed`, and random prompts unless `text` is given.

        options: as the constructor's.
        """
        sizes = architecture.transformer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = DiT4SRNetwork(lr_key=lr_key, control_scale=control_scale, **sizes.model_dump())
            vae = build_vae(architecture.vae)
            texts = torch.randn(2, architecture.num_text_tokens, sizes.joint_attention_dim)
            pooled = torch.randn(2, sizes.pooled_projection_dim)
        for part in (network, vae):
            if dtype != torch.float32:
                nn.Module.to(part, dtype)  # diffusers' own warns of every cast
        random_text = TextEmbeddings(texts[0], pooled[0], texts[1], pooled[1])
        return cls(network, vae, random_text if text is None else text, **options)

    @property
    def module(self) -> nn.Module:
        """The transformer; the VAE is never trained."""
        return self.network

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Everything with weights, by name."""
        return {"trunk": self.network, "autoencoder": self.autoencoder.vae}

    @property
    def vae(self) -> AutoencoderKL:
        """The autoencoder."""
        return self.autoencoder.vae

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> DiT4SRBackbone:
        """Move the transformer and the VAE."""
        nn.Module.to(self.network, device)
        for part in self.autoencoder.decoding_networks().values():
            part.to(device)
        self.image_conditions.to(device)
        return self

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute the activations of a block in the backward pass: less memory, about a third more time."""
        if enabled:
            self.network.enable_gradient_checkpointing()
        else:
            self.network.disable_gradient_checkpointing()

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> x_0 (B, 16, H/8, W/8) float32."""
        with self.image_conditions.at(self.device):
            return self.autoencoder.encode(images)

    def decode(self, x_0: Tensor) -> Tensor:
        """x_0 (B, 16, h, w) -> (B, 3, 8 h, 8 w) float32 clamped to [0, 1]."""
        return self.autoencoder.decode(x_0)

    def encode_condition(
        self, lr: Tensor, *, upscale: int, prompts: tuple[str, ...] | None = None
    ) -> Condition:
        """lr (G, 3, H/r, W/r) in [0, 1] -> fields lr_latent (G, 16, h, w) and the text's, prompt_embeds (G, T, D) ...

        Raises:
            ValueError: an output size that is no multiple of 16 px (pad before, crop after), or above the
                positions that the transformer knows.
        """
        height, width = lr.shape[2] * upscale, lr.shape[3] * upscale
        self.latent_spec.grid(height, width)
        longest = self.latent_spec.longest
        if longest is not None and max(height, width) > longest:
            raise ValueError(
                f"output size {height}x{width} is above the {longest} px per side that backbone 'dit4sr' has positions "
                "for; restore the image in parts or at a smaller upscale"
            )

        def encode(image: Tensor) -> dict[str, Tensor]:
            return {"lr_latent": self.autoencoder.encode(resize(image, (height, width)), keys=image)}

        kept = self.image_conditions.fields(lr, upscale=upscale, device=self.device, encode=encode)
        text = {n: v.to(self.device).expand(lr.shape[0], *v.shape) for n, v in self.text.fields().items()}
        return Condition({**kept, **text})

    def velocity(self, x_t: Tensor, t: Tensor, condition: Condition, **options: Any) -> Tensor:
        """x_t (B, 16, h, w), t (B,) in [0, 1], condition of B rows -> v (B, 16, h, w) float32.

        options: guidance_scale, over the backbone's own; anything but 1.0 is a second pass with the negative prompt.

        Raises:
            ValueError: another option, guidance without a negative prompt, or t or latents of a wrong shape.
        """
        scale = options.pop("guidance_scale", self.guidance_scale)
        if options:
            raise ValueError(
                f"backbone 'dit4sr' takes guidance_scale and no other option, got {sorted(options)}"
            )
        expand_time(t, x_t)  # refuses what is not one time in [0, 1] per sample
        self._check_guidance(scale, "negative_prompt_embeds" in condition.fields)
        prompt, negative = (self._under(condition, prefix) for prefix in ("", "negative_"))
        return classifier_free_guidance(prompt, negative, scale)(x_t, t)

    def default_time_grid(self, num_steps: int, height: int, width: int) -> Tensor:
        """The grid of `time_grid`, the same at every size.

        sd3        uniform times shifted by 3 (arXiv 2403.03206, eq. 23)
        scheduler  diffusers' FlowMatchEulerDiscreteScheduler with SD3's configuration: from 1 to the shifted 1/1000
                   and shifted again, then 0; what the published results were made with
        uniform    equal steps
        """
        if self.time_grid == "uniform":
            return uniform_time_grid(num_steps)
        if self.time_grid == "sd3":
            return shifted_time_grid(num_steps, SHIFT)
        uniform_time_grid(num_steps)  # refuses what is no number of steps
        last = shift_time(torch.tensor(1e-3, dtype=torch.float64), SHIFT)
        times = torch.linspace(1.0, float(last), num_steps, dtype=torch.float64)
        return torch.cat([shift_time(times, SHIFT), times.new_zeros(1)]).float()

    def _under(self, condition: Condition, prefix: str) -> VelocityFunction:
        """The velocity under the prompt ("") or the negative prompt ("negative_"); the LR image is in both."""
        dtype = self.network.pos_embed.proj.weight.dtype

        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            with autocast_region(x_t.device, self.autocast_dtype):
                v = self.network(
                    x_t.to(dtype),
                    condition["lr_latent"].to(dtype),
                    encoder_hidden_states=condition[f"{prefix}prompt_embeds"].to(dtype),
                    pooled_projections=condition[f"{prefix}pooled_prompt_embeds"].to(dtype),
                    timestep=1000.0 * t.float(),
                )
            return v.float()

        return velocity

    def _check_guidance(self, scale: float, has_negative: bool) -> None:
        if scale != 1.0 and not has_negative:
            raise ValueError(
                f"guidance_scale is {scale} but there is no negative prompt to guide away from; give text embeddings "
                "with negative_prompt_embeds and negative_pooled_prompt_embeds, or set it to 1.0"
            )
