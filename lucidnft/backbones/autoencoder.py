"""Images to latents and back through diffusers' AutoencoderKL, frozen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from lucidnft.backbones.image_conditions import public_settings
from lucidnft.backbones.vae_sizes import AutoencoderSizes
from lucidnft.rng import generator_for

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

Posterior = Literal["sample", "mean"]


class Autoencoder:
    """A VAE with the shift and scale of its own configuration."""

    def __init__(self, vae: AutoencoderKL, posterior: Posterior) -> None:
        """vae: frozen here.  posterior: whether an image's latents are drawn or the mean.

        Raises:
            ValueError: posterior is another word.
        """
        if posterior not in get_args(Posterior):
            raise ValueError(f"posterior is {posterior!r}, expected one of {', '.join(get_args(Posterior))}")
        self.vae = vae.requires_grad_(False).eval()
        self.posterior = posterior
        self._given_noise: Tensor | None = None
        self.scale = float(vae.config["scaling_factor"])
        self.shift = float(vae.config["shift_factor"] or 0.0)  # null in configurations of VAEs without one

    @property
    def draws(self) -> bool:
        """Whether latents are drawn."""
        return self.posterior == "sample"

    @property
    def channels(self) -> int:
        """Latent channels."""
        return int(self.vae.config["latent_channels"])

    @property
    def downscale(self) -> int:
        """Pixels per latent cell, per side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    def encoding_networks(self) -> dict[str, nn.Module]:
        """The half of the VAE that makes latents."""
        return self._parts("encoder", "quant_conv")

    def decoding_networks(self) -> dict[str, nn.Module]:
        """The half that makes images."""
        return self._parts("decoder", "post_quant_conv")

    def encoding_options(self) -> dict[str, Any]:
        """Whatever but its weights and the image decides latents."""
        tile = self.vae.tile_sample_min_size if self.vae.use_tiling else None
        return {"posterior": self.posterior, "tile": tile, **public_settings(self.vae.config)}

    def _parts(self, *names: str) -> dict[str, nn.Module]:
        return {name: part for name in names if (part := getattr(self.vae, name)) is not None}

    def encode(self, images: Tensor, *, keys: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> latents (B, C, h, w) float32.

        A sample of the posterior is drawn with noise that is a function of the image, or of the row of `keys`
        (B, ...) where the images were made from something: it depends on nothing else in the batch.  Inside
        `given_noise` it is that.

        Raises:
            ValueError: given noise of another shape than the latents.
        """
        parameter = next(self.vae.encoder.parameters())
        distribution = self.vae.encode((2 * images - 1).to(parameter), return_dict=False)[0]
        latents = distribution.mean.float()
        if self.draws:
            noise = self._given_noise
            if noise is None:
                shape = (latents.shape[1], latents.shape[2], latents.shape[3])
                noise = torch.stack([self.noise(row, shape) for row in (images if keys is None else keys)])
            if noise.shape != latents.shape:
                raise ValueError(
                    f"noise of {tuple(noise.shape)} was given for latents of {tuple(latents.shape)}"
                )
            latents = latents + distribution.std.float() * noise.to(latents)
        return (latents - self.shift) * self.scale

    def noise(self, key: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Of a sample of the posterior of shape (C, h, w): a function of the values of `key`, on the CPU."""
        return torch.randn(shape, generator=generator_for(0, "posterior", _digest(key)))

    @contextmanager
    def given_noise(self, noise: Tensor) -> Iterator[None]:
        """Inside, every call of `encode` draws with this noise (B, C, h, w): for parts of one image."""
        before, self._given_noise = self._given_noise, noise
        try:
            yield
        finally:
            self._given_noise = before

    def decode(self, x_0: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> (B, 3, H, W) float32 clamped to [0, 1]."""
        latents = x_0 / self.scale + self.shift
        images = self.vae.decode(latents.to(next(self.vae.decoder.parameters())), return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)


@runtime_checkable
class DrawsImages(Protocol):
    """A backbone whose conditions come from this autoencoder."""

    @property
    def autoencoder(self) -> Autoencoder:
        """It may draw, or take the mean."""


@contextmanager
def vae_in_one_piece(backbone: object) -> Iterator[None]:
    """Inside, the VAE neither tiles nor slices (`vae_tiling`, `vae_slicing`): its caller cuts images by itself.

    A backbone without a VAE is left as it is.
    """
    vae = getattr(backbone, "vae", None)
    if vae is None:
        yield
        return
    before = vae.use_tiling, vae.use_slicing
    vae.use_tiling = vae.use_slicing = False
    try:
        yield
    finally:
        vae.use_tiling, vae.use_slicing = before


def _digest(image: Tensor) -> str:
    """A hash of the pixels, the same on every device; of nothing on the meta device, which has no pixels."""
    if image.is_meta:
        return ""
    pixels = image.detach().float().cpu().contiguous().numpy().tobytes()
    return hashlib.blake2b(pixels, digest_size=16).hexdigest()


def build_vae(sizes: AutoencoderSizes) -> AutoencoderKL:
    """An autoencoder on the current default device, with torch's random weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    levels = len(sizes.block_out_channels)
    return AutoencoderKL(
        **sizes.model_dump(),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
