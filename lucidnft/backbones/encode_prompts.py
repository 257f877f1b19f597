"""Encode a prompt once, for a setting that names a file of text embeddings.

    python -m lucidnft.backbones.encode_prompts stabilityai/stable-diffusion-3.5-medium text.safetensors \\
        --prompt "..." --negative_prompt "..."

Of the model only the text encoders and tokenizers are read (and fetched, if they are not there).  A Stable Diffusion 3
gives what DiT4SR's `text_embeddings` reads, a FLUX.1 what LucidFlux's `prompt_embeddings` reads.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lucidnft.checkpoint import save_tensors

NUM_SD3_TOKENS = 77
"""Of T5, as DiT4SR is run; as many of CLIP come before them."""
NUM_FLUX_TOKENS = 512


@torch.no_grad()
def encode_prompts(pipeline: Any, prompt: str, negative_prompt: str | None = None) -> dict[str, Tensor]:
    """The tensors of one prompt, by the names that the settings' files have.

    pipeline: diffusers' StableDiffusion3Pipeline or FluxPipeline with its text encoders.

    Raises:
        ValueError: another pipeline, or a negative prompt for FLUX, which has no guidance by one.
    """
    from diffusers import FluxPipeline, StableDiffusion3Pipeline

    encode: Any = getattr(pipeline, "encode_prompt", None)
    if isinstance(pipeline, FluxPipeline):
        if negative_prompt is not None:
            raise ValueError("LucidFlux is run without classifier-free guidance: leave --negative_prompt out")
        text, pooled, _ = encode(prompt, prompt, max_sequence_length=NUM_FLUX_TOKENS)
        return {"txt": text, "vec": pooled}
    if not isinstance(pipeline, StableDiffusion3Pipeline):
        raise ValueError(
            f"the model is a {type(pipeline).__name__}, expected a Stable Diffusion 3 (DiT4SR) or FLUX.1 (LucidFlux)"
        )
    both = negative_prompt is not None
    negative = {f"negative_prompt{which}": negative_prompt for which in ("", "_2", "_3")}
    text, negative_text, pooled, negative_pooled = encode(
        prompt, prompt, prompt,
        do_classifier_free_guidance=both, max_sequence_length=NUM_SD3_TOKENS, **negative,
    )  # fmt: skip
    tensors = {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
    if both:
        tensors.update(negative_prompt_embeds=negative_text, negative_pooled_prompt_embeds=negative_pooled)
    return tensors


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    from diffusers import DiffusionPipeline

    parser = argparse.ArgumentParser(description="Encode a prompt once, into a .safetensors file.")
    parser.add_argument(
        "model", help="folder or repository of Stable Diffusion 3.5 or FLUX.1, with text encoders"
    )
    parser.add_argument("target", metavar="NEW.safetensors")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--negative_prompt", help="for classifier-free guidance of DiT4SR")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    args = parser.parse_args(argv)
    target = Path(args.target)
    try:
        if target.suffix != ".safetensors" or target.exists():
            raise ValueError(f"{target} must be a new file whose name ends with .safetensors")
        pipeline = DiffusionPipeline.from_pretrained(
            args.model, transformer=None, vae=None, torch_dtype=getattr(torch, args.dtype)
        )
        tensors = encode_prompts(pipeline, args.prompt, args.negative_prompt)
        header = {name: getattr(args, name) for name in ("model", "prompt", "negative_prompt")}
        save_tensors(target, tensors, header)
    except (ValueError, OSError) as error:
        print(f"encode_prompts: {error}", file=sys.stderr)
        return 1
    print(f"{target}: " + ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
