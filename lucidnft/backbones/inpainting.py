"""Inpainting pipelines of diffusers: they repaint a region of a photograph, for hard negatives of faithfulness."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lucidnft.checkpoint.required_files import RequiredFile
from lucidnft.schema import ConfigModel


class Inpainter:
    """Callable: (image (3, H, W) in [0, 1], mask (H, W) bool, seed) -> (3, H, W), the same outside the mask."""

    def __init__(
        self, pipeline: Any, *, prompt: str, num_inference_steps: int, guidance_scale: float, strength: float
    ) -> None:
        """pipeline: a diffusers inpainting pipeline."""
        self.pipeline = pipeline
        self.arguments = {
            "prompt": prompt,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "strength": strength,
        }

    @torch.no_grad()
    def __call__(self, image: Tensor, mask: Tensor, seed: int) -> Tensor:
        """Raises ValueError when a side is no multiple of 8, or the model's answer is not finite."""
        if image.shape[1] % 8 or image.shape[2] % 8:
            raise ValueError(
                f"inpainting needs sides that are multiples of 8, got {image.shape[1]}x{image.shape[2]}; "
                "change data.images.crop_size"
            )
        generator = torch.Generator("cpu").manual_seed(seed)
        painted: Tensor = self.pipeline(
            image=image[None].clone(), mask_image=mask[None, None].float(), height=image.shape[1],
            width=image.shape[2], generator=generator, output_type="pt", **self.arguments,
        ).images[0]  # fmt: skip
        painted = painted.to(image)
        if not bool(torch.isfinite(painted).all()):
            raise ValueError("the inpainting model gave an image that is not finite; try dtype float32")
        return torch.where(mask, painted.clamp(0, 1), image)


class InpaintingConfig(ConfigModel):
    """Settings of `Inpainter`."""

    model_name_or_path: str
    prompt: str = ""
    num_inference_steps: int = 20
    guidance_scale: float = 1.0
    strength: float = 1.0
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "cpu"

    def required_files(self) -> tuple[RequiredFile, ...]:
        """A remark: which files a pipeline has is known only to itself."""
        note = (
            f"diffusers fetches {self.model_name_or_path} itself when regions are repainted, unless it has it"
        )
        return (RequiredFile("a pipeline", None, "model_name_or_path", needed=False, note=note),)

    def build(self) -> Inpainter:
        """Load the pipeline.  Raises OSError when it is neither a folder nor reachable."""
        from diffusers import AutoPipelineForInpainting

        pipeline = AutoPipelineForInpainting.from_pretrained(
            self.model_name_or_path, torch_dtype=getattr(torch, self.dtype)
        )
        pipeline.set_progress_bar_config(disable=True)
        return Inpainter(
            pipeline.to(self.device), prompt=self.prompt, num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale, strength=self.strength,
        )  # fmt: skip
