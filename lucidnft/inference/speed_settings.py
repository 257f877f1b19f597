"""Precision and compilation of a network that only restores."""

from __future__ import annotations

import shutil
from typing import Any, Literal, get_args

import torch

from lucidnft.backbones.base import Backbone
from lucidnft.backbones.speed import compile_blocks
from lucidnft.inference.tiled_images import backbone_of
from lucidnft.policy import Policy

RestoreDtype = Literal["auto", "fp32", "bf16", "fp16"]

DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
COMPILERS = ("c++", "g++", "clang++")


def prepare_for_restoring(
    policy_or_backbone: Policy | Backbone, *, dtype: RestoreDtype = "auto", compile: bool = False
) -> None:
    """Set the precision of the network's matrix products, and compile it in its first pass; in place.

    To be called once, when the network is on its device.  Latents and the solver stay in float32, and so do the
    autoencoder and the encoders, unless their weights were loaded in another dtype.

    Args:
        policy_or_backbone: of any kind.
        dtype: "fp32" keeps the dtype of the weights.  "auto" is bf16 on a GPU that computes in it, for every backbone
            but the tiny one, whose images should be the same everywhere; on a CPU fp32, where processors
            without instructions of their own for bf16 take several times as long for it.
        compile: the repeated blocks of a transformer, all of the tiny network.  Minutes once per process and size
            of tile or image, so for tiles or images of one size.

    Raises:
        ValueError: another dtype, one that the device does not compute in, or no C++ compiler for a CPU.
    """
    backbone = backbone_of(policy_or_backbone)
    if dtype not in get_args(RestoreDtype):
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(get_args(RestoreDtype))}")
    device = backbone.device
    if dtype == "auto":
        fast = device.type == "cuda" and backbone.name != "tiny" and torch.cuda.is_bf16_supported(False)
        dtype = "bf16" if fast else "fp32"
    if dtype == "fp16" and device.type == "cpu":
        raise ValueError("dtype fp16 is for GPUs; on a CPU take fp32, or bf16 where the processor has it")
    if dtype == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ValueError(f"{torch.cuda.get_device_name(device)} does not compute in bf16; take fp16 or fp32")
    backbone.autocast_dtype = DTYPES[dtype]
    if compile:
        _compile(backbone)


def _compile(backbone: Backbone) -> None:
    if backbone.device.type == "cpu" and not any(shutil.which(name) for name in COMPILERS):
        raise ValueError(
            f"compiling for the CPU needs a C++ compiler, and none of {', '.join(COMPILERS)} is on PATH; install one "
            "(e.g. apt-get install g++), or restore without --compile"
        )
    network: Any = backbone.network
    if backbone.name == "tiny":
        network.compile(dynamic=False)
    elif compile_blocks(network, dynamic=False) == 0:
        raise ValueError(
            f"backbone '{backbone.name}' has no repeated blocks to compile; restore without --compile"
        )
