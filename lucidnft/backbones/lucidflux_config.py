"""`model:` section of a run with LucidFlux.  Loads diffusers and transformers only when it builds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from lucidnft.backbones.adapters import LoraSettings
from lucidnft.backbones.encoder_settings import EncoderSettings
from lucidnft.backbones.lucidflux_architecture import LucidFluxArchitecture
from lucidnft.backbones.lucidflux_files import (
    DEFAULT_PROMPT,
    DEFAULT_SWINIR,
    DEFAULT_WEIGHTS,
    FLUX,
    SIGLIP,
    lucidflux_files,
)
from lucidnft.backbones.released_sizes import sizes_in
from lucidnft.backbones.speed import SpeedSettings
from lucidnft.checkpoint.places import find_folder
from lucidnft.checkpoint.required_files import RequiredFile

if TYPE_CHECKING:
    from lucidnft.backbones.lucidflux import LucidFluxBackbone


class LucidFluxBackboneConfig(LoraSettings, EncoderSettings, SpeedSettings):
    """Where LucidFlux's weights are, and how it is run.

    Models in diffusers' or transformers' layout are named by a folder or by a repository, owner/name, which is then
    read from the Hugging Face cache; single files by a path, relative to the working directory.  The defaults
    are the released repositories, and weights/lucidflux/ for the files: where lucidnft-download puts them.
    """

    type: Literal["lucidflux"] = "lucidflux"
    # folder or repository of FLUX.1-dev in diffusers' layout; null for random weights of `architecture`
    model_name_or_path: str | None = FLUX.repository
    siglip_name_or_path: str = SIGLIP.repository
    lucidflux_weights: str = DEFAULT_WEIGHTS  # the conditioner and the connector
    swinir_weights: str = DEFAULT_SWINIR  # the pre-restorer, of DiffBIR
    prompt_embeddings: str = DEFAULT_PROMPT  # of the one prompt: T5 (tokens, 4096) and CLIP (768)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the frozen weights, and of what is computed
    time_grid: Literal["release", "flux"] = "release"  # see LucidFluxBackbone.default_time_grid
    guidance_scale: float = Field(default=4.0, ge=0)  # of FLUX's guidance embedding
    # sizes of random weights; of the files' networks only the pre-restorer's, whose file does not tell them
    architecture: LucidFluxArchitecture = LucidFluxArchitecture()

    @model_validator(mode="after")
    def _no_files_for_random_weights(self) -> LucidFluxBackboneConfig:
        names = ("siglip_name_or_path", "lucidflux_weights", "swinir_weights", "prompt_embeddings")
        given = [n for n in names if getattr(self, n) != type(self).model_fields[n].default]
        if self.model_name_or_path is None and given:
            raise ValueError(
                f"model_name_or_path: null means random weights, which do not read {', '.join(given)}; remove these, "
                "or name FLUX.1-dev"
            )
        return self

    def required_files(self) -> tuple[RequiredFile, ...]:
        """The files that `build` reads; none for random weights."""
        if self.model_name_or_path is None:
            return ()
        return lucidflux_files(
            self.model_name_or_path,
            self.siglip_name_or_path,
            lucidflux_weights=self.lucidflux_weights,
            swinir_weights=self.swinir_weights,
            prompt_embeddings=self.prompt_embeddings,
        )

    def build(self, *, seed: int = 0) -> LucidFluxBackbone:
        """The backbone on the CPU.  The seed is that of random weights.

        Raises:
            FileNotFoundError, ValueError: a file is missing, damaged, or another model's.
            ImportError: the package that quantize needs is missing.
        """
        return self.quantised(lambda: self._full(seed))

    def _full(self, seed: int) -> LucidFluxBackbone:
        """With the weights in their own dtype."""
        import torch

        from lucidnft.backbones.lucidflux import LucidFluxBackbone

        dtype, options = getattr(torch, self.dtype), self._options()
        if self.model_name_or_path is None:
            random = LucidFluxBackbone.initialise(self.architecture, seed=seed, dtype=dtype, **options)
            return self.set_up(random)
        released = LucidFluxBackbone.from_pretrained(
            str(find_folder(self.model_name_or_path, "model_name_or_path")),
            lucidflux_weights=self.lucidflux_weights,
            swinir_weights=self.swinir_weights,
            siglip=str(find_folder(self.siglip_name_or_path, "siglip_name_or_path")),
            prompt_embeddings=self.prompt_embeddings,
            swinir_sizes=self.architecture.swinir,
            dtype=dtype,
            **options,
        )
        return self.set_up(released)

    def build_skeleton(self) -> LucidFluxBackbone:
        """The whole backbone without values, on the meta device: what memory is planned with.  Reads no weights.

        Its sizes are those of `architecture`, or of config.json in the folders that are named, if they are there.
        """
        import torch

        from lucidnft.backbones.lucidflux import LucidFluxBackbone

        sizes = self.architecture
        if self.model_name_or_path is not None:
            flux = Path(self.model_name_or_path)
            found = {
                "transformer": sizes_in(flux / "transformer", sizes.transformer),
                "vae": sizes_in(flux / "vae", sizes.vae),
                "siglip": sizes_in(self.siglip_name_or_path, sizes.siglip),
            }
            sizes = sizes.model_copy(update=found)
        with torch.device("meta"):
            skeleton = LucidFluxBackbone.initialise(
                sizes, dtype=getattr(torch, self.dtype), **self._options()
            )
        return self.set_up_vae(skeleton)

    def _options(self) -> dict[str, Any]:
        import torch

        return {
            "time_grid": self.time_grid,
            "guidance_scale": self.guidance_scale,
            "autocast_dtype": None if self.dtype == "float32" else getattr(torch, self.dtype),
        }
