"""`model:` section of a run with LucidFlux.  Loads diffusers and transformers only when it builds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from lucidnft.backbones.adapters import LoraSettings
from lucidnft.backbones.lucidflux_architecture import LucidFluxArchitecture

if TYPE_CHECKING:
    from lucidnft.backbones.lucidflux import LucidFluxBackbone


class LucidFluxBackboneConfig(LoraSettings):
    """Where LucidFlux's weights are, and how it is run.

    The defaults of the names are the repositories that the weights were released in.
    """

    type: Literal["lucidflux"] = "lucidflux"
    # folder or repository of FLUX.1-dev in diffusers' layout; null for random weights of `architecture`
    model_name_or_path: str | None = "black-forest-labs/FLUX.1-dev"
    siglip_name_or_path: str = "google/siglip2-so400m-patch16-512"
    lucidflux_weights: str | None = None  # lucidflux.pth: the conditioner and the connector
    swinir_weights: str | None = None  # the pre-restorer: DiffBIR's general_swinir_v1.ckpt
    prompt_embeddings: str | None = None  # of the one prompt: T5 (tokens, 4096) and CLIP (768)
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of the frozen weights, and of what is computed
    time_grid: Literal["release", "flux"] = "release"  # see LucidFluxBackbone.default_time_grid
    guidance_scale: float = Field(default=4.0, ge=0)  # of FLUX's guidance embedding
    # sizes of random weights; of the files' networks only the pre-restorer's, whose file does not tell them
    architecture: LucidFluxArchitecture = LucidFluxArchitecture()

    @model_validator(mode="after")
    def _all_files_or_none(self) -> LucidFluxBackboneConfig:
        files = ("lucidflux_weights", "swinir_weights", "prompt_embeddings")
        unnamed = [name for name in files if getattr(self, name) is None]
        if self.model_name_or_path is not None and unnamed:
            raise ValueError(f"give the paths of {', '.join(unnamed)}, or model_name_or_path: null")
        return self

    def build(self, *, seed: int = 0) -> LucidFluxBackbone:
        """The backbone on the CPU.  The seed is that of random weights.

        Raises:
            FileNotFoundError, ValueError: a file is missing, damaged, or another model's.
        """
        import torch

        from lucidnft.backbones.lucidflux import LucidFluxBackbone

        dtype = getattr(torch, self.dtype)
        options = {
            "time_grid": self.time_grid,
            "guidance_scale": self.guidance_scale,
            "autocast_dtype": None if self.dtype == "float32" else dtype,
        }
        if self.model_name_or_path is None:
            return LucidFluxBackbone.initialise(self.architecture, seed=seed, dtype=dtype, **options)
        assert self.lucidflux_weights and self.swinir_weights and self.prompt_embeddings  # validated
        return LucidFluxBackbone.from_pretrained(
            self.model_name_or_path,
            lucidflux_weights=self.lucidflux_weights,
            swinir_weights=self.swinir_weights,
            siglip=self.siglip_name_or_path,
            prompt_embeddings=self.prompt_embeddings,
            swinir_sizes=self.architecture.swinir,
            dtype=dtype,
            **options,
        )
