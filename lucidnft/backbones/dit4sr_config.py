"""`model:` section of a run with DiT4SR.  Loads diffusers only when it builds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator

from lucidnft.backbones.adapters import LoraSettings
from lucidnft.backbones.autoencoder import Posterior
from lucidnft.backbones.dit4sr_architecture import DiT4SRArchitecture, SD3Sizes
from lucidnft.backbones.dit4sr_files import dit4sr_files
from lucidnft.backbones.dit4sr_text import EMPTY, TextEmbeddings
from lucidnft.backbones.encoder_settings import EncoderSettings
from lucidnft.backbones.released_sizes import sizes_in
from lucidnft.backbones.speed import SpeedSettings
from lucidnft.checkpoint import load_json
from lucidnft.checkpoint.places import find_folder
from lucidnft.checkpoint.released_files import load_released
from lucidnft.checkpoint.required_files import RequiredFile

if TYPE_CHECKING:
    from lucidnft.backbones.dit4sr import DiT4SRBackbone

TimeGrid = Literal["sd3", "scheduler", "uniform"]


class DiT4SRBackboneConfig(LoraSettings, EncoderSettings, SpeedSettings):
    """`model:` section of a run with DiT4SR.

    Models in diffusers' layout are named by a folder or by a repository, owner/name or owner/name/folder, which is
    then read from the Hugging Face cache, where lucidnft-download puts it.
    """

    type: Literal["dit4sr"] = "dit4sr"
    # Stable Diffusion 3.5 medium, of which transformer/config.json and vae/ are read; null for random weights
    model_name_or_path: str | None
    # DiT4SR's own weights: a .safetensors file, its folder, or as released acceptee/DiT4SR/dit4sr_q/transformer
    transformer_path: str | None = None
    lr_key: Literal[
        "noise", "lr"
    ]  # the version of those weights: lr for dit4sr_r1, noise for dit4sr_q and dit4sr_f
    control_scale: float = 1.2  # of the convolution from LR to noise tokens; 1.0 as in the published training
    text_embeddings: str = EMPTY  # a .safetensors file of encode_prompt's tensors, or "empty"
    guidance_scale: float = Field(
        default=1.0, ge=0
    )  # 1.0 is off; else a second pass, in rollouts and training alike
    posterior: Posterior = "sample"
    time_grid: TimeGrid = "sd3"
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"  # of the frozen weights
    architecture: DiT4SRArchitecture = DiT4SRArchitecture()  # sizes of random weights

    @model_validator(mode="after")
    def _both_files_or_none(self) -> DiT4SRBackboneConfig:
        if (self.model_name_or_path is None) != (self.transformer_path is None):
            raise ValueError(
                "model_name_or_path and transformer_path go together: give both, or null for both and random weights"
            )
        return self

    def required_files(self) -> tuple[RequiredFile, ...]:
        """The files that `build` reads; none for random weights."""
        if self.model_name_or_path is None or self.transformer_path is None:
            return ()
        text = None if self.text_embeddings == EMPTY else self.text_embeddings
        return dit4sr_files(self.model_name_or_path, self.transformer_path, text)

    def build(self, *, seed: int = 0) -> DiT4SRBackbone:
        """The backbone on the CPU.  The seed is that of random weights.

        Raises:
            FileNotFoundError: a folder or file is missing.
            ValueError: a configuration of another model, or weights that are not exactly the expected ones.
            ImportError: the package that quantize needs is missing.
        """
        return self.quantised(lambda: self._full(seed))

    def _full(self, seed: int) -> DiT4SRBackbone:
        """With the weights in their own dtype."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        from lucidnft.backbones.dit4sr import DiT4SRBackbone
        from lucidnft.backbones.dit4sr_network import DiT4SRNetwork

        dtype, options = getattr(torch, self.dtype), self._options()
        if self.model_name_or_path is None:
            random = DiT4SRBackbone.initialise(
                self.architecture, lr_key=self.lr_key, control_scale=self.control_scale,
                seed=seed, dtype=dtype, **options,
            )  # fmt: skip
            return self.set_up(random)
        assert self.transformer_path is not None  # validated
        base = find_folder(self.model_name_or_path, "model_name_or_path")
        fields = _configuration(base / "transformer", "SD3Transformer2DModel")
        known = {name: fields[name] for name in SD3Sizes.model_fields if name in fields}
        text = self._text(known.get("joint_attention_dim", 4096), known.get("pooled_projection_dim", 2048))
        vae_fields = _configuration(base / "vae", "AutoencoderKL")
        network = _filled(
            lambda: DiT4SRNetwork(lr_key=self.lr_key, control_scale=self.control_scale, **known),
            find_folder(self.transformer_path, "transformer_path"), dtype,
        )  # fmt: skip
        vae = _filled(lambda: AutoencoderKL.from_config(vae_fields), base / "vae", dtype)
        return self.set_up(DiT4SRBackbone(network, vae, text, **options))

    def build_skeleton(self) -> DiT4SRBackbone:
        """The whole backbone without values, on the meta device: what memory is planned with.  Reads no weights.

        Its sizes are those of `architecture`, or of config.json in the folders that are named, if they are there.
        The text of a file is taken to be as long as that of `architecture`, with a negative prompt.

        Raises:
            ValueError: guidance without a negative prompt.
        """
        from lucidnft.backbones.dit4sr import DiT4SRBackbone

        sizes = self.architecture
        if self.model_name_or_path is not None:
            base = Path(self.model_name_or_path)
            found = {
                "transformer": sizes_in(base / "transformer", sizes.transformer),
                "vae": sizes_in(base / "vae", sizes.vae),
            }
            sizes = sizes.model_copy(update=found)
        with torch.device("meta"):
            text = None
            if self.model_name_or_path is not None and self.text_embeddings == EMPTY:
                widths = (sizes.transformer.joint_attention_dim, sizes.transformer.pooled_projection_dim)
                text = TextEmbeddings.empty(*widths)
            skeleton = DiT4SRBackbone.initialise(
                sizes, lr_key=self.lr_key, control_scale=self.control_scale, text=text,
                dtype=getattr(torch, self.dtype), **self._options(),
            )  # fmt: skip
        return self.set_up_vae(skeleton)

    def _options(self) -> dict[str, Any]:
        return {
            "guidance_scale": self.guidance_scale, "posterior": self.posterior, "time_grid": self.time_grid,
        }  # fmt: skip

    def _text(self, width: int, pooled_width: int) -> TextEmbeddings:
        if self.text_embeddings == EMPTY:
            return TextEmbeddings.empty(width, pooled_width)
        return TextEmbeddings.from_file(self.text_embeddings, width, pooled_width)


def _configuration(folder: Path, kind: str) -> dict[str, Any]:
    """config.json of a part of a diffusers folder, which must be that of class `kind`."""
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist; model_name_or_path must be a folder or repository of Stable Diffusion 3.5 medium "
            "in diffusers' layout, with transformer/config.json and vae/"
        )
    fields = load_json(file)
    found = fields.get("_class_name") if isinstance(fields, dict) else None
    if found != kind:
        raise ValueError(f"{file} describes a {found!r}, expected {kind!r}: it belongs to another model")
    return fields


def _filled(make: Callable[[], Any], path: Path, dtype: torch.dtype) -> Any:
    """A module made without memory and filled from files that hold exactly its tensors."""
    with torch.device("meta"):
        module = make()
    tensors = load_released(path, expected=module.state_dict())
    module.load_state_dict({name: value.to(dtype) for name, value in tensors.items()}, assign=True)
    return module
