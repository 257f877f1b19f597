"""LucidFlux's networks, from released files or with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import Tensor
from transformers import SiglipVisionConfig, SiglipVisionModel

from lucidnft.backbones.autoencoder import build_vae
from lucidnft.backbones.lucidflux_architecture import LucidFluxArchitecture, SwinIRSizes
from lucidnft.backbones.lucidflux_condition import PARTS, DualBranchConditioner
from lucidnft.backbones.lucidflux_encoders import LucidFluxEncoders, PromptEmbeddings
from lucidnft.backbones.lucidflux_network import LucidFluxNetwork
from lucidnft.backbones.swinir import SwinIR
from lucidnft.checkpoint.released_files import load_strictly_, read_released_file
from lucidnft.checkpoint.tensor_files import first_few

RELEASED_PARTS = (*PARTS, "connector")
"""The dictionaries in lucidflux.pth."""


def build_network(architecture: LucidFluxArchitecture) -> LucidFluxNetwork:
    """The velocity network on the current default device, with torch's random weights."""
    config = architecture.transformer.model_dump()
    return LucidFluxNetwork(
        FluxTransformer2DModel(**config),
        DualBranchConditioner(config, num_blocks=architecture.num_condition_blocks),
    )


def build_encoders(architecture: LucidFluxArchitecture) -> LucidFluxEncoders:
    """The frozen networks on the current default device, with torch's random weights."""
    siglip = architecture.siglip.model_dump()
    return LucidFluxEncoders(
        build_vae(architecture.vae),
        SwinIR(**architecture.swinir.model_dump()),
        SiglipVisionModel(SiglipVisionConfig(**siglip, vision_use_head=False)),
        build_connector(siglip["hidden_size"], architecture.transformer.joint_attention_dim),
    )


def build_connector(image_width: int, text_width: int) -> Any:
    """The Redux-type MLP between SigLIP's tokens and T5's."""
    return ReduxImageEncoder(redux_dim=image_width, txt_in_features=text_width)


def load_network(
    flux: str, parts: Mapping[str, Mapping[str, Tensor]], source: str, *, dtype: torch.dtype
) -> LucidFluxNetwork:
    """FLUX's transformer from a folder or repository in diffusers' layout, the conditioner from released tensors.

    Raises:
        ValueError: any tensor is missing, unknown or of another shape.
    """
    transformer: Any = _from_diffusers(FluxTransformer2DModel, flux, "transformer", dtype)
    with torch.device("meta"):
        conditioner = DualBranchConditioner(transformer.config)
    conditioner.load_released_(parts, source, dtype=dtype)
    return LucidFluxNetwork(transformer, conditioner)


def load_encoders(
    flux: str,
    siglip: str,
    swinir: str | Path,
    connector: Mapping[str, Tensor],
    *,
    swinir_sizes: SwinIRSizes,
    dtype: torch.dtype,
) -> LucidFluxEncoders:
    """Autoencoder from FLUX's folder or repository, SigLIP from its own, the pre-restorer from its file.

    The pre-restorer stays in float32: it is small, and its output is a condition and a colour reference.

    Raises:
        ValueError: any tensor is missing, unknown or of another shape.
    """
    vae: Any = _from_diffusers(AutoencoderKL, flux, "vae", dtype)
    kind: Any = SiglipVisionModel
    vision, report = kind.from_pretrained(siglip, dtype=dtype, output_loading_info=True)
    # the text side of SigLIP lies in the same file
    _refuse_incomplete(f"SigLIP from {siglip}", report, ignored=("text_model.", "logit_"))
    with torch.device("meta"):
        restorer = SwinIR(**swinir_sizes.model_dump())
        joint = build_connector(vision.config.hidden_size, len(connector.get("redux_down.bias", ())))
    restorer.load_released_(read_swinir_file(swinir), str(swinir), dtype=torch.float32)
    load_strictly_(joint, connector, "connector of LucidFlux", dtype=dtype)
    return LucidFluxEncoders(vae, restorer, vision, joint)


def read_lucidflux_file(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """The dictionaries of lucidflux.pth by name; or of a file that joins their names to those of the tensors.

    Raises:
        ValueError: another file: a dictionary is missing or unknown.
    """
    contents = read_released_file(path)
    if contents and all(isinstance(value, Tensor) for value in contents.values()):
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in contents.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = value
        contents = parts
    missing = [name for name in RELEASED_PARTS if name not in contents]
    extra = [name for name in contents if name not in RELEASED_PARTS]
    if missing or extra:
        raise ValueError(
            f"{path} is not LucidFlux's: it lacks {missing or 'nothing'} and has unknown {first_few(extra) or 'none'}"
        )
    return contents


def read_swinir_file(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a pre-restorer's file, without the wrappings ("state_dict", "module.") some copies have."""
    contents = read_released_file(path)
    tensors: dict[str, Tensor] = contents.get("state_dict", contents)
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def read_prompt_embeddings(path: str | Path, text_width: int, pooled_width: int) -> PromptEmbeddings:
    """The tensor of T5 (tokens, text_width) and that of CLIP (pooled_width) in a file, with or without a batch axis.

    They are told apart by their widths, whatever their names.

    Raises:
        ValueError: not exactly one tensor of each kind.
    """
    tensors = {name: value for name, value in read_released_file(path).items() if isinstance(value, Tensor)}
    flat = {n: v[0] if v.ndim > 1 and v.shape[0] == 1 else v for n, v in tensors.items()}
    text = [v for v in flat.values() if v.ndim == 2 and v.shape[1] == text_width]
    pooled = [v for v in flat.values() if v.ndim == 1 and v.shape[0] == pooled_width]
    if len(text) != 1 or len(pooled) != 1:
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        raise ValueError(
            f"{path}: expected one tensor (tokens, {text_width}) of T5 and one ({pooled_width},) "
            f"of CLIP, found {shapes}"
        )
    return PromptEmbeddings(text[0][None], pooled[0][None])


def _from_diffusers(kind: Any, path: str, subfolder: str, dtype: torch.dtype) -> Any:
    model, report = kind.from_pretrained(
        path, subfolder=subfolder, torch_dtype=dtype, output_loading_info=True
    )
    _refuse_incomplete(f"{subfolder} of {path}", report)
    return model


def _refuse_incomplete(source: str, report: Mapping[str, Any], ignored: tuple[str, ...] = ()) -> None:
    """diffusers and transformers fill missing tensors with random numbers and only log it."""
    problems = []
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(name) for name in report.get(kind, ()))
        names = [name for name in names if not (kind == "unexpected_keys" and name.startswith(ignored))]
        if names:
            problems.append(f"{len(names)} {kind.replace('_', ' ')}: {first_few(names)}")
    problems += [str(message) for message in report.get("error_msgs", ())]
    if problems:
        raise ValueError(f"{source} does not fit its own configuration: {'; '.join(problems)}")
