"""Attention kernels, compiled blocks and quantised weights: what changes a run's speed and memory, not its method."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, model_validator
from torch import nn

from lucidnft.backbones.base import Backbone
from lucidnft.backbones.quantization import Quantize, quantize_base_, repeated_blocks, require_quantizer
from lucidnft.schema import ConfigModel

BackboneT = TypeVar("BackboneT", bound=Backbone)
AttentionBackend = Literal["sdpa", "xformers", "flash"]

DISPATCHED_NAMES = {"sdpa": "native", "xformers": "xformers", "flash": "flash"}
"""The backends by the names of diffusers' dispatch."""

INSTALLS = {
    "xformers": ("xformers", "pip install 'lucidnft[xformers]'"),
    "flash": ("flash_attn", "pip install flash-attn --no-build-isolation"),
}

RECOMPILE_LIMIT = 64
"""Versions of a block's code that are kept.  One is made for each kind of block in each role, with and without
gradients, and at a second size; torch's own limit of 8 is passed in the first step, after which it no longer
compiles what is new and only logs that."""


class SpeedSettings(ConfigModel):
    """Speed fields of the `model:` sections with transformers."""

    attention_backend: AttentionBackend = (
        "sdpa"  # of training; xformers and flash need a GPU and their packages
    )
    # regional: compile each transformer block in its first pass (minutes once), in training
    compile: Literal["none", "regional"] = "none"
    quantize: Quantize = Field(
        default="none"
    )  # of the frozen linear weights; see lucidnft.backbones.quantization

    def quantised(self, build: Callable[[], BackboneT]) -> BackboneT:
        """What `build` makes, with its base weights as `quantize` says.

        Raises:
            ImportError: the package that quantize needs is missing; nothing was built then.
        """
        require_quantizer(self.quantize)  # before minutes of loading
        backbone = build()
        quantize_base_(backbone.network, self.quantize)
        return backbone

    @model_validator(mode="after")
    def _quantised_weights_are_not_trained(self) -> SpeedSettings:
        if self.quantize != "none" and getattr(self, "train_parameters", None):
            raise ValueError(
                f"quantize: {self.quantize} rounds the base weights, so train_parameters cannot train them; "
                "set quantize: none, or train LoRA adapters alone"
            )
        return self


def prepare_speed(backbone: Backbone, settings: ConfigModel) -> None:
    """Apply a `model:` section's attention_backend and compile; quantize was applied when the backbone was built.

    To be called when adapters are attached and device and precision are set: what can run depends on these.
    A section without speed fields leaves the backbone as it is.

    Raises:
        ValueError: the attention backend cannot run here.
    """
    if not isinstance(settings, SpeedSettings):
        return
    dtype = backbone.autocast_dtype or next(backbone.network.parameters()).dtype
    set_attention_backend(backbone.network, settings.attention_backend, device=backbone.device, dtype=dtype)
    if settings.compile == "regional":
        compile_blocks(backbone.network)


def check_speed(backbone: Backbone, settings: ConfigModel, device: torch.device) -> None:
    """Raise the ValueError that `prepare_speed` would raise on this device, as far as that can be told beforehand.

    backbone: as it will run, or its skeleton.
    """
    if isinstance(settings, SpeedSettings):
        dtype = backbone.autocast_dtype or next(backbone.network.parameters()).dtype
        _refuse(settings.attention_backend, device, dtype)


def set_attention_backend(
    network: nn.Module, backend: AttentionBackend, *, device: torch.device, dtype: torch.dtype
) -> None:
    """Run every attention of a network's transformers with one backend of diffusers' dispatch.

    device, dtype: that attention will run on and in.

    Raises:
        ValueError: the backend's package is missing or too old, or the backend does not run on that device or dtype.
    """
    _refuse(backend, device, dtype)
    from diffusers import ModelMixin
    from diffusers.models.attention_dispatch import attention_backend
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it calls the interface experimental at every call
    try:
        # set_attention_backend changes the default of all other models too; the context puts that back
        with attention_backend("native"):
            transformer: Any = ModelMixin
            for part in network.modules():
                if isinstance(part, transformer):
                    part.set_attention_backend(DISPATCHED_NAMES[backend])
    except RuntimeError as error:
        raise ValueError(f"model.attention_backend: {backend} cannot be used: {error} Or set sdpa") from error
    finally:
        logging.set_verbosity(verbosity)


def compile_blocks(network: nn.Module, **options: Any) -> int:
    """Compile every repeated block in place, each in its first pass; returns how many there are.

    Names of parameters stay as they are.  Blocks of one kind share their compiled code.  diffusers'
    compile_repeated_blocks would leave the conditioner's branches out: it has no list of their blocks.

    options: of torch.compile.
    """
    import torch._dynamo

    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, RECOMPILE_LIMIT)
    blocks = repeated_blocks(network)
    for block in blocks.values():
        block.compile(**options)
    return len(blocks)


def _refuse(backend: AttentionBackend, device: torch.device, dtype: torch.dtype) -> None:
    problem = _why_not(backend, device, dtype)
    if problem is not None:
        raise ValueError(f"model.attention_backend: {backend} {problem}")


def _why_not(backend: AttentionBackend, device: torch.device, dtype: torch.dtype) -> str | None:
    if backend == "sdpa":
        return None
    package, install = INSTALLS[backend]
    if importlib.util.find_spec(package) is None:
        return f"needs the package {package}, which is not installed; run: {install}, or set sdpa"
    if device.type != "cuda":
        return f"runs on CUDA devices only, this run is on {device}; set sdpa"
    if backend == "flash" and dtype not in (torch.bfloat16, torch.float16):
        return (
            f"computes in bfloat16 or float16, this run in {str(dtype).removeprefix('torch.')}; "
            "set train.mixed_precision: bf16, or sdpa"
        )
    return None
