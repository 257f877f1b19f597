"""LucidFlux's conditioner (arXiv 2509.22414): the LR image and its pre-restored version, made into residuals.

Two branches of equal architecture and separate weights, `lq` for the LR image and `ldr` for the pre-restored one.
A branch is a small FLUX: eight convolutions turn its image into tokens, which are added to those of x_t; two double
blocks follow, each with a linear layer that starts at zero.  The trunk's double block l receives

    residual_l = sum over branches of  (1 + scale_l) * LayerNorm(output_(l mod 2)) + shift_l,

where (scale_l, shift_l) = Linear(SiLU(MLP(PE(1000 t)) + MLP(PE(l)))) with weights of its own per branch.  The paper
writes PE(t / T, l / L) and no LayerNorm; the released weights go with the form above.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from diffusers import FluxControlNetModel
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from lucidnft.backbones.flux_keys import diffusers_to_flux, flux_to_diffusers
from lucidnft.checkpoint.released_files import load_strictly_

PARTS = ("condition_lq", "condition_ldr", "modulation_lq", "modulation_ldr")
"""The conditioner's dictionaries of tensors in the released file."""

FREQUENCIES = 256
STEM_CHANNELS = 16
STEM_DOWNSCALE = 8


class LayerModulation(nn.Module):
    """Scale and shift of every layer's residual, from the time and the layer's index.

    Both start at zero, as the layers after the branches' blocks do: a new conditioner changes nothing.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frequencies = Timesteps(FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(FREQUENCIES, width)
        self.control_index_embedder = TimestepEmbedding(FREQUENCIES, width)
        self.linear = nn.Linear(width, 2 * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, t: Tensor, num_layers: int) -> tuple[Tensor, Tensor]:
        """t (B,) in [0, 1] -> scale and shift, each (num_layers, B, 1, D)."""
        dtype = self.linear.weight.dtype
        layers = torch.arange(num_layers, device=t.device)  # the raw index, not a fraction
        time = self.timestep_embedder(self.frequencies(1000 * t.float()).to(dtype))
        index = self.control_index_embedder(self.frequencies(layers).to(dtype))
        both = self.linear(nn.functional.silu(index[:, None] + time[None]))
        shift, scale = both.unsqueeze(2).chunk(2, dim=-1)  # in this order in the released rows
        return scale, shift


class LayerResiduals(Sequence[Tensor]):
    """The residuals of all layers, (B, L, D) each, made when asked for.

    Few branch outputs serve many layers, so keeping all residuals would cost far more memory than making them.
    """

    def __init__(self, outputs: list[list[Tensor]], modulations: list[tuple[Tensor, Tensor]]) -> None:
        """outputs: per branch, the normalised (B, L, D) of its blocks; modulations: per branch (scale, shift)."""
        self.outputs = outputs
        self.modulations = modulations

    def __len__(self) -> int:
        return self.modulations[0][0].shape[0]

    @overload
    def __getitem__(self, layer: int) -> Tensor: ...

    @overload
    def __getitem__(self, layer: slice) -> list[Tensor]: ...

    def __getitem__(self, layer: int | slice) -> Tensor | list[Tensor]:
        if isinstance(layer, slice):
            return [self[i] for i in range(*layer.indices(len(self)))]
        if not 0 <= layer < len(self):
            raise IndexError(f"layer {layer} of {len(self)}")
        terms = [
            (1 + scale[layer]) * blocks[layer % len(blocks)] + shift[layer]
            for blocks, (scale, shift) in zip(self.outputs, self.modulations, strict=True)
        ]
        return terms[0] + terms[1]


class DualBranchConditioner(nn.Module):
    """Both branches with their modulations."""

    def __init__(self, transformer_config: Mapping[str, Any], *, num_blocks: int = 2) -> None:
        """transformer_config: of the trunk, a FluxTransformer2DModel; the branches share its widths.

        num_blocks: double blocks per branch.
        """
        super().__init__()
        self.num_blocks = num_blocks
        shared = (
            "in_channels",
            "attention_head_dim",
            "num_attention_heads",
            "joint_attention_dim",
            "pooled_projection_dim",
            "guidance_embeds",
            "axes_dims_rope",
        )
        branch: dict[str, Any] = {name: transformer_config[name] for name in shared}
        branch |= {"patch_size": 2, "conditioning_embedding_channels": STEM_CHANNELS}
        branch |= {"num_layers": num_blocks, "num_single_layers": 0}
        if branch["in_channels"] != 4 * STEM_CHANNELS:
            raise ValueError(
                f"the trunk takes tokens of {branch['in_channels']} channels, the branches' images become "
                f"{4 * STEM_CHANNELS}; only 16-channel latents, packed 2 x 2, fit"
            )
        width = branch["attention_head_dim"] * branch["num_attention_heads"]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*FluxPosEmbed")  # diffusers' own use of its old name
            self.condition_lq: Any = FluxControlNetModel(**branch)
            self.condition_ldr: Any = FluxControlNetModel(**branch)
        self.modulation_lq = LayerModulation(width)
        self.modulation_ldr = LayerModulation(width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)

    def forward(
        self, tokens: Tensor, t: Tensor, lq: Tensor, pre_restored: Tensor, num_layers: int, **inputs: Tensor
    ) -> LayerResiduals:
        """Residuals of the trunk's double blocks.

        Args:
            tokens: (B, L, 64) x_t, packed.
            t: (B,) in [0, 1].
            lq, pre_restored: (B, 3, H, W) in [-1, 1], the LR image at the output's size and its restoration.
            num_layers: double blocks of the trunk.
            inputs: what FLUX takes besides: encoder_hidden_states (B, text, D), pooled_projections (B, P),
                guidance (B,), img_ids (L, 3), txt_ids (text, 3).
        """
        outputs, modulations = [], []
        branches = (
            (self.condition_lq, self.modulation_lq, lq),
            (self.condition_ldr, self.modulation_ldr, pre_restored),
        )
        for branch, modulation, image in branches:
            blocks = branch(
                hidden_states=tokens, controlnet_cond=image, timestep=t, return_dict=False, **inputs
            )[0]
            outputs.append([self.norm(block) for block in blocks])
            modulations.append(modulation(t, num_layers))
        return LayerResiduals(outputs, modulations)

    def load_released_(
        self, parts: Mapping[str, Mapping[str, Tensor]], source: str, *, dtype: torch.dtype | None = None
    ) -> None:
        """Take over the released tensors: a dictionary for each of `PARTS`.  May be on the meta device before.

        Raises:
            ValueError: a part or a tensor is missing, unknown or of another shape.
        """
        missing = [name for name in PARTS if name not in parts]
        if missing:
            raise ValueError(f"{source} lacks {missing}; it has {sorted(parts)}")
        for name in PARTS:
            tensors = dict(parts[name])
            if name.startswith("condition"):
                try:
                    tensors = flux_to_diffusers(tensors)
                except ValueError as error:
                    raise ValueError(f"{source}, part {name}: {error}") from error
            load_strictly_(getattr(self, name), tensors, f"{source}, part {name}", dtype=dtype)

    def released_state(self) -> dict[str, dict[str, Tensor]]:
        """The tensors under their released names, by part: the inverse of `load_released_`."""
        states = {name: getattr(self, name).state_dict() for name in PARTS}
        return {n: diffusers_to_flux(s) if n.startswith("condition") else s for n, s in states.items()}
