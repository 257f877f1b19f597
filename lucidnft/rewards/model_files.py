"""Where the weights of rewards and embedders were released.

Sizes follow from the numbers of parameters: Qwen3-VL in bfloat16, the others in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from lucidnft.checkpoint.required_files import Release, RequiredFile, model_part, single_file

QWEN_8B = Release("Qwen/Qwen3-VL-Embedding-8B", "Apache-2.0")
QWEN_2B = Release("Qwen/Qwen3-VL-Embedding-2B", "Apache-2.0")
DINOV2 = Release("facebook/dinov2-base", "Apache-2.0")
CLIP = Release("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "MIT")
LUCIDNFT = Release("W2GenAI/LucidNFT", "unknown; its code: FLUX.1 [dev] Non-Commercial")
PYIQA = Release("chaofengc/IQA-PyTorch-Weights", "unknown; pyiqa: PolyForm Noncommercial 1.0.0")

CLIP_TAG = ("ViT-B-32", "laion2b_s34b_b79k")
WITHOUT_WEIGHTS = frozenset(
    ("psnr", "psnry", "ssim", "ssimc", "ms_ssim", "cw_ssim", "fsim")
    + ("vif", "gmsd", "nlpd", "vsi", "mad", "piqe", "entropy")
)
_PYIQA_FILES = {
    "musiq": "musiq_koniq_ckpt-e95806b9.pth",
    "clipiqa+": "CLIP-IQA+_learned_prompts-603f3273.pth",
    "niqe": "niqe_modelparameters.mat",
}
_SIZES = {"musiq": 109_000_000}
_ON_CLIP = ("clipiqa", "clipiqa+")
_CLIP_RN50 = (
    "https://openaipublic.azureedge.net/clip/models/"
    "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt"
)


def qwen_files(name: str) -> tuple[RequiredFile, ...]:
    """A Qwen3-VL embedder that a setting `model_name_or_path` names."""
    sizes = {QWEN_8B.repository: 16_000_000_000, QWEN_2B.repository: 4_000_000_000}
    return (replace(model_part(name, "*", "model_name_or_path", (QWEN_8B, QWEN_2B)), size=sizes.get(name)),)


def vision_files(name: str) -> tuple[RequiredFile, ...]:
    """A vision model of transformers that a setting `model_name_or_path` names."""
    return (model_part(name, "*", "model_name_or_path", (DINOV2,), size=346_000_000),)


def clip_files(model: str, pretrained: str) -> tuple[RequiredFile, ...]:
    """open_clip's weights of this tag, or a file."""
    if (model, pretrained) == CLIP_TAG:
        part = model_part(
            CLIP.repository, "open_clip_model.safetensors", "pretrained", (CLIP,), size=605_000_000
        )
        return (replace(part, also=("open_clip_pytorch_model.bin",)),)
    if "/" in pretrained or "." in pretrained:
        return (single_file(pretrained, "pretrained"),)
    note = f"open_clip fetches {model} {pretrained} itself when the reward is built, unless it has it"
    return (RequiredFile(f"{model} {pretrained}", None, "pretrained", needed=False, note=note),)


def head_files(head: str | None, shipped: Sequence[str]) -> tuple[RequiredFile, ...]:
    """The head of LucidConsistency, unless it ships with this package or there is none."""
    if head is None or head in shipped:
        return ()
    return (single_file(head, "head", LUCIDNFT, name="proj_head.pt"),)


def pyiqa_files(metric: str) -> tuple[RequiredFile, ...]:
    """What a metric of pyiqa reads from where pyiqa looks for it; of metrics not listed here, a remark."""
    from torch.hub import get_dir

    if metric in WITHOUT_WEIGHTS:
        return ()
    if metric not in _PYIQA_FILES and metric not in _ON_CLIP:
        note = f"pyiqa fetches what {metric} reads itself when the reward is built, unless it has it"
        return (RequiredFile(f"weights of {metric}", None, "metric", needed=False, note=note),)
    files = []
    if metric in _PYIQA_FILES:
        name = quote(_PYIQA_FILES[metric])  # pyiqa calls its copy by the last part of the file's address
        own = single_file(str(Path(get_dir()) / "pyiqa" / name), "metric", PYIQA, name=name)
        files.append(replace(own, released_as=_PYIQA_FILES[metric], size=_SIZES.get(metric)))
    if metric in _ON_CLIP:
        files.append(
            RequiredFile("RN50.pt", Path(get_dir()) / "clip", "metric", licence="MIT", url=_CLIP_RN50)
        )
    return tuple(files)
