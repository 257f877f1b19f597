"""The DiT4SR network (arXiv 2503.23580): SD3's transformer with a second token stream for the LR image.

It is diffusers' SD3Transformer2DModel with the parts that differ put in their places, under the names of the
released state dicts.  Both streams are patches of latents with the same embedding and positions and go through the
blocks as one sequence [noise; LR] under the same modulation.  What is added, per block:

    attention   LR tokens take SD3's own projections and then to_{q,k,v}_control.  All tokens attend to all,
                text among them (not in the second attention of a dual block).  The LR stream's modulated
                input is added to its result before to_out_control.
    MLP         after the activation a depthwise 3x3 convolution of the LR stream is added to the noise
                stream, times `control_scale`: 1.0 in the published training, 1.2 in its inference.

The two published versions differ in one line and have weights of their own: the keys of LR tokens are
norm_k(noise keys), of keys that were normalised already, in the first ("noise"), and norm_k(LR keys) in "_r1" ("lr").

With every control weight at zero this is not quite SD3, in either version: LR tokens then add nothing to a sum over
values, but still take their share of the softmax.  Called without LR latents it is SD3 exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import torch
from diffusers.models.attention import FeedForward, JointTransformerBlock
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

LRKey = Literal["noise", "lr"]


class ControlAttnProcessor(JointAttnProcessor2_0):
    """Attention over [noise; LR] and text tokens.  Without a grid it is diffusers' own, over noise and text."""

    _attention_backend: Any = None  # diffusers' set_attention_backend writes here
    _parallel_config: Any = None

    def __init__(self, lr_key: LRKey) -> None:
        super().__init__()
        self.lr_key = lr_key

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Any:
        """hidden_states (B, 2 L, D) [noise; LR], modulated; encoder_hidden_states (B, T, D) text.

        Returns the results of the same shapes: a pair, or one tensor when there is no text.
        """
        if grid is None:
            own: Any = super().__call__  # annotated with FloatTensor, which no tensor is
            return own(attn, hidden_states, encoder_hidden_states, attention_mask)
        num_image_tokens = hidden_states.shape[1]
        lr_input = hidden_states.chunk(2, dim=1)[1]
        query = attn.norm_q(_heads(attn, _with_control(attn, "q", hidden_states)))
        key = self._image_keys(attn, hidden_states)
        value = _heads(attn, _with_control(attn, "v", hidden_states))
        if encoder_hidden_states is not None:
            text_query = attn.norm_added_q(_heads(attn, attn.add_q_proj(encoder_hidden_states)))
            text_key = attn.norm_added_k(_heads(attn, attn.add_k_proj(encoder_hidden_states)))
            query, key = torch.cat([query, text_query], dim=1), torch.cat([key, text_key], dim=1)
            value = torch.cat([value, _heads(attn, attn.add_v_proj(encoder_hidden_states))], dim=1)
        # under autocast the norms give float32, which not every attention backend takes beside bf16 values
        out = dispatch_attention_fn(
            query.to(value.dtype), key.to(value.dtype), value,
            backend=self._attention_backend, parallel_config=self._parallel_config,
        ).flatten(2)  # fmt: skip
        image, text = out[:, :num_image_tokens], out[:, num_image_tokens:]
        noise, lr = image.chunk(2, dim=1)
        image = torch.cat([attn.to_out[0](noise), attn.to_out_control(lr + lr_input)], dim=1)
        if encoder_hidden_states is None:
            return image
        return image, text if attn.context_pre_only else attn.to_add_out(text)

    def _image_keys(self, attn: Any, tokens: Tensor) -> Tensor:
        if self.lr_key == "lr":
            return attn.norm_k(_heads(attn, _with_control(attn, "k", tokens)))
        noise_key = attn.norm_k(_heads(attn, attn.to_k(tokens.chunk(2, dim=1)[0])))
        return torch.cat([noise_key, attn.norm_k(noise_key)], dim=1)


def _with_control(attn: Any, name: str, tokens: Tensor) -> Tensor:
    """[noise; LR] tokens through to_<name>, the LR half through to_<name>_control too."""
    noise, lr = getattr(attn, f"to_{name}")(tokens).chunk(2, dim=1)
    return torch.cat([noise, getattr(attn, f"to_{name}_control")(lr)], dim=1)


def _heads(attn: Any, tokens: Tensor) -> Tensor:
    """(B, L, D) -> (B, L, heads, D / heads)."""
    return tokens.unflatten(2, (attn.heads, -1))


class ControlFeedForward(FeedForward):
    """The MLP of [noise; LR] tokens, with a convolution from the LR stream into the noise stream."""

    def __init__(self, dim: int, control_scale: float) -> None:
        super().__init__(dim=dim, dim_out=dim, activation_fn="gelu-approximate")
        width = 4 * dim
        self.control_scale = control_scale
        self.control_conv = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.grid: tuple[int, int] | None = None  # (rows, columns) of tokens; None: there is no LR stream

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(B, 2 L, D) with L = rows * columns -> the same."""
        if self.grid is None:
            return super().forward(hidden_states, *args, **kwargs)
        activate, _, project = self.net
        noise, lr = activate(hidden_states).chunk(2, dim=1)
        image = lr.transpose(1, 2).unflatten(2, self.grid)
        from_lr = self.control_conv(image).flatten(2).transpose(1, 2)
        return project(torch.cat([noise + self.control_scale * from_lr, lr], dim=1))


class ControlBlock(JointTransformerBlock):
    """A block of SD3 whose attention and MLP know the LR stream."""

    def __init__(
        self, config: Mapping[str, Any], *, last: bool, dual: bool, lr_key: LRKey, control_scale: float
    ) -> None:
        heads, head_dim, qk_norm = (
            config[name] for name in ("num_attention_heads", "attention_head_dim", "qk_norm")
        )
        dim = heads * head_dim
        super().__init__(dim, heads, head_dim, last, qk_norm, dual)
        self.ff = ControlFeedForward(dim, control_scale)
        if dual:
            # As released: text projections are there, although the second attention sees no text.
            self.attn2 = Attention(
                query_dim=dim, added_kv_proj_dim=dim, dim_head=head_dim, heads=heads, out_dim=dim,
                context_pre_only=False, bias=True, qk_norm=qk_norm, eps=1e-6,
            )  # fmt: skip
        for attn in (self.attn, self.attn2):
            if attn is not None:
                attn.set_processor(ControlAttnProcessor(lr_key))  # type: ignore[arg-type]
                for name in ("to_q_control", "to_k_control", "to_v_control", "to_out_control"):
                    attn.add_module(name, nn.Linear(dim, dim))

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, 2 L, D), text (B, T, D), temb (B, D), {"grid": (rows, columns)} -> (text, tokens)."""
        # diffusers' block hands its MLP tokens and nothing else.  Set in every pass, so the pass that gradient
        # checkpointing repeats has its own grid, whatever ran in between.
        cast(ControlFeedForward, self.ff).grid = (joint_attention_kwargs or {}).get("grid")
        own: Any = super().forward
        return own(hidden_states, encoder_hidden_states, temb, joint_attention_kwargs)


class DiT4SRNetwork(SD3Transformer2DModel):
    """SD3's transformer with an LR stream; `config` holds SD3's own fields."""

    _no_split_modules = ["ControlBlock"]

    def __init__(self, *, lr_key: LRKey, control_scale: float = 1.2, **config: Any) -> None:
        """lr_key: which published version the weights are for; config: fields of SD3Transformer2DModel.

        Raises:
            ValueError: lr_key is another word, or the configuration has no normalisation of queries and keys.
        """
        if lr_key not in get_args(LRKey):
            raise ValueError(f"lr_key is {lr_key!r}, expected one of {', '.join(get_args(LRKey))}")
        if config.get("qk_norm") is None:
            raise ValueError("DiT4SR normalises queries and keys: set qk_norm, 'rms_norm' in SD 3.5")
        super().__init__(**config)
        self.lr_key = lr_key
        layers = range(len(self.transformer_blocks))
        self.transformer_blocks = nn.ModuleList(
            ControlBlock(
                self.config, last=i == layers[-1], dual=i in self.config["dual_attention_layers"],
                lr_key=lr_key, control_scale=control_scale,
            )
            for i in layers
        )  # fmt: skip

    def forward(
        self,
        hidden_states: Tensor,
        lr_latents: Tensor | None,
        *,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        timestep: Tensor,
    ) -> Tensor:
        """x_t and LR latents (B, C, h, w), text (B, T, D) and (B, P), timestep (B,) in [0, 1000] -> v (B, C, h, w).

        With lr_latents None the result is that of SD3 with the same weights.

        Raises:
            ValueError: LR latents of another shape than x_t, or sides that are no multiples of the patch.
        """
        text = {"encoder_hidden_states": encoder_hidden_states, "pooled_projections": pooled_projections}
        if lr_latents is None:
            return super().forward(hidden_states, timestep=timestep, return_dict=False, **text)[0]
        self._check_latents(hidden_states, lr_latents)
        rows, columns = (side // self.config["patch_size"] for side in hidden_states.shape[2:])
        tokens = torch.cat([self.pos_embed(hidden_states), self.pos_embed(lr_latents)], dim=1)
        temb = self.time_text_embed(timestep, pooled_projections)
        text_tokens = self.context_embedder(encoder_hidden_states)
        for block in self.transformer_blocks:
            arguments = (tokens, text_tokens, temb, {"grid": (rows, columns)})
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                recompute: Any = self._gradient_checkpointing_func
                text_tokens, tokens = recompute(block, *arguments)
            else:
                text_tokens, tokens = block(*arguments)
        noise_tokens = tokens[:, : rows * columns]
        patches = self.proj_out(self.norm_out(noise_tokens, temb))
        # a patch is stored as (row, column, channel), pixel_shuffle reads (channel, row, column)
        size = self.config["patch_size"]
        cells = patches.unflatten(2, (size * size, self.out_channels)).transpose(2, 3).flatten(2)
        return F.pixel_shuffle(cells.transpose(1, 2).unflatten(2, (rows, columns)), size)

    def _check_latents(self, x_t: Tensor, lr_latents: Tensor) -> None:
        patch = self.config["patch_size"]
        if x_t.shape != lr_latents.shape:
            # two grids of different sizes would be cut in halves at a wrong place, without an error
            raise ValueError(
                f"latents are {tuple(x_t.shape)} and LR latents {tuple(lr_latents.shape)}, expected one shape"
            )
        if x_t.shape[2] % patch or x_t.shape[3] % patch:
            raise ValueError(
                f"latents are {x_t.shape[2]}x{x_t.shape[3]}, expected multiples of the patch, {patch}"
            )
